#!/usr/bin/env python3
"""FAISS and ScaNN beside `sbp bench pair`: pair.py [N] [NPROBE,NPROBE,...]

Needs numpy and faiss-cpu; ScaNN takes part where it is installed. Embeddings of the same family as the bench's own (a hierarchical mixture with
Zipf cluster sizes), an index of each with sqrt(N) lists and 8-bit values, top-200 of sampled rows of the set
itself, recall against IndexFlatIP. One thread; CPU-seconds of the whole self-join follow from the
sample's. One JSON line a setting.
"""
import importlib.metadata, json, os, sys, time

os.environ["OMP_NUM_THREADS"] = "1"
import faiss
import numpy as np

try:
    import scann
except ImportError:
    scann = None

n = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
probes = [int(p) for p in (sys.argv[2] if len(sys.argv) > 2 else "16,32,64").split(",")]
d, k, n_queries, n_topics, n_clusters, n_global = 1024, 200, 600, 250, 5000, 96
rng = np.random.default_rng(1234)
faiss.omp_set_num_threads(1)


def unit(a):
    return (a / np.linalg.norm(a, axis=-1, keepdims=True)).astype(np.float32)


def generate():
    basis = np.linalg.qr(rng.standard_normal((d, n_global)))[0].T
    spectrum = np.arange(1, n_global + 1) ** -0.5
    directions = lambda m: unit(rng.standard_normal((m, n_global)) * spectrum @ basis)
    mean, topics, clusters = unit(rng.standard_normal(d)), directions(n_topics), directions(n_clusters)
    topic_of = rng.integers(0, n_topics, n_clusters)
    local = unit(rng.standard_normal((n_topics, 12, d)))
    share = np.arange(1, n_clusters + 1) ** -0.8
    label = rng.choice(n_clusters, n, p=share / share.sum())
    spread = np.clip(np.exp(rng.normal(-0.12, 0.40, n)), 0.15, 2.0)
    rows = np.empty((n, d), np.float32)
    for topic in range(n_topics):
        of = np.flatnonzero(topic_of[label] == topic)
        if not len(of):
            continue
        inner = rng.standard_normal((len(of), 12)) / 12**0.5 @ local[topic]
        noise = rng.standard_normal((len(of), d)) / d**0.5
        own = 0.35 * mean + 0.55 * topics[topic] + 0.75 * clusters[label[of]]
        rows[of] = unit(own + spread[of, None] * (0.45 * inner + 0.55 * noise))
    return rows


def timed(call):
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def neighbours(ids, queries):
    return [set([i for i in row if i != own][:k]) for row, own in zip(ids, queries)]


rows = generate()
queries = rng.choice(n, n_queries, replace=False)
flat = faiss.IndexFlatIP(d)
flat.add(rows)
(_, ids), flat_s = timed(lambda: flat.search(rows[queries], k + 1))
truth = neighbours(ids, queries)
del flat
index = faiss.index_factory(d, f"IVF{round(n**0.5)},SQ8", faiss.METRIC_INNER_PRODUCT)
_, build_s = timed(lambda: (index.train(rows), index.add(rows)))
print(json.dumps({"index": "flat", "cpu_s": round(flat_s * n / n_queries, 1), "recall": 1.0}), flush=True)


def tell(index, probe, search, build_s, version):
    ids, search_s = timed(search)
    hit = sum(len(a & b) for a, b in zip(neighbours(ids, queries), truth))
    print(json.dumps({
        "index": index, "version": version, "n": n, "nprobe": probe, "recall": round(hit / (k * n_queries), 4),
        "build_cpu_s": round(build_s, 1), "search_cpu_s": round(search_s * n / n_queries, 1),
    }), flush=True)


for probe in probes:
    index.nprobe = probe
    tell(f"faiss IVF{round(n**0.5)},SQ8", probe, lambda: index.search(rows[queries], k + 1)[1], build_s, faiss.__version__)
if scann is None:
    sys.exit("ScaNN is not installed and was left out")
del index


def scann_index():
    builder = scann.scann_ops_pybind.builder(rows, k + 1, "dot_product").set_n_training_threads(1)
    tree = builder.tree(num_leaves=round(n**0.5), num_leaves_to_search=probes[0], training_sample_size=n)
    index = tree.score_brute_force(quantize=True).build()
    index.set_num_threads(1)
    return index


index, build_s = timed(scann_index)
version = importlib.metadata.version("scann")
for probe in probes:
    search = lambda: index.search_batched(rows[queries], leaves_to_search=probe)[0]
    tell(f"scann {round(n**0.5)} leaves, int8", probe, search, build_s, version)

"""Compares the task `benchmark` with lm-evaluation-harness 0.4.13, item by item.

Trains a small model with sbp, scores it on real items with both programs, and fails unless log
likelihoods agree to 1e-3 nats (of whole texts: to 1e-5 a token) and every prediction, greedy flag and
generated answer is the same. lm-eval's own task files are used; only where their data lies is changed.

    python -m venv peers && peers/bin/pip install lm_eval==0.4.13 torch transformers
    peers/bin/python tasks/tests/peers/compare_lm_eval.py --sbp target/release/sbp --data DATA --text TEXT --dir WORK

DATA holds the benchmarks as JSON lines in the datasets' own schemas, named `arc_easy.test.jsonl` and so
on; TEXT is a JSON lines file (.zst) of documents with a `text`; WORK is a folder for everything that is made.
Nothing is downloaded.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

STOCK = pathlib.Path(lm_eval.__file__).parent / "tasks"
# Name, file of items, shots, lm-eval's own task file, the split that it scores.
TASKS = {
    "arc_easy": ("arc_easy.test", 0, "arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc_challenge.test", 0, "arc/arc_challenge.yaml", "test"),
    "sciq": ("sciq.test", 0, "sciq/sciq.yaml", "test"),
    "winogrande": ("winogrande_xl.validation", 0, "winogrande/default.yaml", "validation"),
    "lambada": ("lambada_openai.test", 0, "lambada/lambada_openai.yaml", "test"),
    "triviaqa": ("triviaqa.validation", 1, "triviaqa/default.yaml", "validation"),
    "webqs": ("webquestions.test", 1, "webqs/webqs.yaml", "test"),
    "mmlu": ("mmlu.test", 5, None, "test"),
    "openwebtext2": (None, 0, "pile/pile_openwebtext2.yaml", "test"),
}
CONTEXT = 1024


def read(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(path, n):
    """The first documents of a compressed file, through the standard tool."""
    lines = subprocess.run(["zstd", "-dcq", "--long=27", path], capture_output=True, check=True).stdout
    return [{"text": json.loads(line)["text"]} for line in lines.split(b"\n")[:n]]


def write_items(options, dir):
    """Files of the items that both programs score, and of their examples."""
    for name, (source, shots, _, _) in TASKS.items():
        rows = texts(options.text, options.items) if source is None else read(options.data / f"{source}.jsonl")
        items = rows[: options.items]
        if name == "mmlu":
            # Whole subjects, since examples go by subject.
            last = rows[min(options.items, len(rows)) - 1]["subject"]
            items = [row for i, row in enumerate(rows) if i < options.items or row["subject"] == last]
        write(dir / f"{name}.jsonl", items)
        if name == "mmlu":
            write(dir / f"{name}.examples.jsonl", read(options.data / "mmlu.dev.jsonl"))
        elif name == "webqs":
            # lm-eval reads an answer of digits as an index.
            train = [row for row in read(options.data / "webquestions.train.jsonl") if not min(row["answers"]).isdigit()]
            write(dir / f"{name}.examples.jsonl", train)
        elif shots:
            write(dir / f"{name}.examples.jsonl", rows[options.items :])


def pipeline(options, dir):
    """The sbp pipeline: a small model trained on real text, then every benchmark."""
    nodes = f"""version: 1
nodes:
  read: {{task: read_corpus, params: {{paths: ["{options.text}"]}}}}
  tokenizer: {{task: train_tokenizer, in: read, params: {{vocab_size: 4096}}}}
  tokens: {{task: tokenize, in: {{corpus: read, tokenizer: tokenizer}}}}
  order: {{task: mix, in: tokens, params: {{budget_tokens: {options.tokens}}}}}
  model:
    task: pretrain
    in: {{schedule: order, real: tokens, tokenizer: tokenizer}}
    params: {{arch: toy, context: {CONTEXT}, batch_tokens: 8192, lr_peak: 3e-3}}
"""
    for name, (_, shots, _, _) in TASKS.items():
        examples = dir / f"{name}.examples.jsonl"
        more = f", examples: {name}_examples" if examples.exists() else ""
        if more:
            nodes += f"  {name}_examples: {{task: read_items, params: {{paths: [\"{examples}\"]}}}}\n"
        nodes += f"  {name}_items: {{task: read_items, params: {{paths: [\"{dir / name}.jsonl\"]}}}}\n"
        nodes += f"  {name}: {{task: benchmark, in: {{model: model.model, items: {name}_items{more}}}, params: {{name: {name}, shots: {shots}}}}}\n"
    (dir / "peer.yaml").write_text(nodes)
    ran = subprocess.run(
        [options.sbp, "run", dir / "peer.yaml", "--dir", dir / "sbp", "--json"], stdout=subprocess.PIPE, check=True
    )
    outputs = json.loads(ran.stdout)["outputs"]
    rows = {}
    for name in TASKS:
        path = pathlib.Path(outputs[name]["benchmark"]["path"])
        lines = subprocess.run(["zstd", "-dcq", path / "items.jsonl.zst"], capture_output=True, check=True).stdout
        rows[name] = ([json.loads(line) for line in lines.split(b"\n") if line], json.loads((path / "scores.json").read_text()))
    return outputs["model"]["model"]["path"], rows


def task_files(dir, name):
    """Task files that take lm-eval's own and only say where the data lies; their names."""
    _, shots, stock, split = TASKS[name]
    tasks = dir / "tasks"
    tasks.mkdir(exist_ok=True)
    if name == "mmlu":
        items, examples = read(dir / "mmlu.jsonl"), read(dir / "mmlu.examples.jsonl")
        names = []
        for subject in dict.fromkeys(row["subject"] for row in items):
            for part, rows in [("items", items), ("examples", examples)]:
                write(dir / f"mmlu.{subject}.{part}.jsonl", [row for row in rows if row["subject"] == subject])
            text = f"""include: {STOCK}/mmlu/default/mmlu_{subject}.yaml
task: peer_mmlu_{subject}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {dir}/mmlu.{subject}.items.jsonl, dev: {dir}/mmlu.{subject}.examples.jsonl}}}}
num_fewshot: {shots}
"""
            (tasks / f"peer_mmlu_{subject}.yaml").write_text(text)
            names.append(f"peer_mmlu_{subject}")
        return names
    files = {split: f"{dir}/{name}.jsonl"}
    if (dir / f"{name}.examples.jsonl").exists():
        files["train"] = f"{dir}/{name}.examples.jsonl"
    text = f"include: {STOCK}/{stock}\ntask: peer_{name}\ndataset_path: json\ndataset_name: null\n"
    text += f"dataset_kwargs: {json.dumps({'data_files': files})}\nnum_fewshot: {shots}\n"
    for other in ["training", "validation", "test"]:
        key = {"training": "train"}.get(other, other)
        text += f"{other}_split: {key if key in files else 'null'}\n"
    if name == "webqs":
        # Version 0.4.13 stops at an example whose target is a list of indices.
        text += "fewshot_config:\n  doc_to_target: \"{{(answers | sort(case_sensitive=true))[0]}}\"\n"
    (tasks / f"peer_{name}.yaml").write_text(text)
    return [f"peer_{name}"]


def theirs(options, dir, model):
    """lm-eval's samples of every benchmark, in the order of the items."""
    lm = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1)
    assert lm.max_length == CONTEXT, lm.max_length
    names = {name: task_files(dir, name) for name in TASKS}
    result = lm_eval.simple_evaluate(
        model=lm,
        tasks=[task for tasks in names.values() for task in tasks],
        task_manager=TaskManager(include_path=str(dir / "tasks")),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = {}
    for name, tasks in names.items():
        samples[name] = [s for task in tasks for s in sorted(result["samples"][task], key=lambda s: s["doc_id"])]
    return samples


def distance(ours, theirs):
    """How far apart two log likelihoods are; what is no number is apart from everything."""
    difference = abs(ours - float(theirs))
    return math.inf if math.isnan(difference) else difference


def compare(name, ours, samples, headline):
    """What differs between the rows of one benchmark."""
    assert len(ours) == len(samples) > 0, (name, len(ours), len(samples))
    worst, n_wrong = 0.0, 0
    for row, sample in zip(ours, samples):
        if name == "triviaqa":
            theirs = sample["resps"][0][0]
            mine = row["text"]
            for stop in "\n.,":
                mine = mine.split(stop)[0]
            n_wrong += mine != theirs or float(row["right"]["exact_match"]) != sample["exact_match"]
            continue
        if name == "openwebtext2":
            worst = max(worst, distance(row["log_likelihoods"][0], sample["resps"][0][0]) / row["tokens"])
            _, n_bytes = sample["byte_perplexity"]
            _, n_words = sample["word_perplexity"]
            n_wrong += (n_bytes, n_words) != (row["bytes"], row["words"])
            continue
        pairs = [response[0] for response in sample["resps"]]
        assert len(pairs) == len(row["log_likelihoods"]), (name, row, pairs)
        for (value, greedy), mine, mine_greedy in zip(pairs, row["log_likelihoods"], row["greedy"]):
            worst = max(worst, distance(mine, value))
            n_wrong += (str(greedy) == "True") != mine_greedy
        shared = row["right"].keys() & sample.keys()
        # What no measure of ours is compared with would pass unseen. LAMBADA's headline is a perplexity.
        assert shared and (headline in shared or name == "lambada"), (name, headline, row["right"], list(sample))
        n_wrong += sum(float(row["right"][measure]) != float(sample[measure]) for measure in shared)
    return worst, n_wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbp", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="folder for everything that is made")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=400_000, help="tokens to train on")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_items(options, options.dir)
    model, rows = pipeline(options, options.dir)
    samples = theirs(options, options.dir, model)
    print(f"{'benchmark':<15}{'items':>7}{'worst difference':>20}{'other verdicts':>16}{'score':>9}")
    is_wrong = False
    for name in TASKS:
        ours, scores = rows[name]
        worst, n_wrong = compare(name, ours, samples[name], scores["headline"])
        limit = 1e-5 if name == "openwebtext2" else 1e-3
        is_wrong |= not worst <= limit or n_wrong > 0
        score = scores["metrics"][scores["headline"]]["value"]
        print(f"{name:<15}{len(ours):>7}{worst:>20.2e}{n_wrong:>16}{score:>9.3f}")
    sys.exit("they differ" if is_wrong else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Pipes generated documents through read -> clean -> dedup -> tokenize and tells what that took.

    python tasks/benches/stream.py target/release/sbp --gb 20 --dir /big/disk

Documents are 10 paragraphs of 50,000; one in ten repeats an earlier one but for a paragraph, one in
fifty is broken. They reach `sbp run` as JSON lines, compressed by `zstd`, on standard input. The
folder is removed at the end unless `--keep` is given. Needs `zstd`.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time

PIPELINE = """version: 1
name: stream
nodes:
  read: {task: read_corpus, params: {paths: ['-'], format: jsonl}}
  clean: {task: clean, in: {corpus: read}}
  dedup: {task: dedup, in: {corpus: clean}}
  tokenizer: {task: train_tokenizer, in: {corpus: dedup}, params: {vocab_size: 4096, sample_bytes: 8000000}}
  tokens: {task: tokenize, in: {corpus: dedup, tokenizer: tokenizer}}
"""


def documents(n_bytes, seed):
    """Lines of JSON, until they hold `n_bytes` of text."""
    draw = random.Random(seed)
    syllables = ["an", "be", "con", "da", "el", "fi", "ga", "il", "lo", "ma", "ne", "or", "pre", "sta", "ter", "un", "vo"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(8000)]
    paragraphs = [" ".join(draw.choices(words, k=draw.randint(20, 60))) + ". " for _ in range(50000)]
    recent, i = [], 0
    while n_bytes > 0:
        if recent and i % 10 == 9:
            parts = list(draw.choice(recent))
            parts[draw.randrange(10)] = draw.choice(paragraphs)
        else:
            parts = draw.choices(paragraphs, k=10)
            if len(recent) < 20000:
                recent.append(parts)
            else:
                recent[draw.randrange(20000)] = parts
        text = "".join(parts)
        if i % 50 == 49:
            text += "caf\\u00c3\\u00a9\\r\\n\\n\\n\\n\\u0007"
        n_bytes -= len(text)
        i += 1
        yield f'{{"text": "{text}", "n": {i}}}\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sbp")
    parser.add_argument("--gb", type=float, default=20.0, help="text, in 10^9 bytes")
    parser.add_argument("--dir", default=None, help="where the run's folder is made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    place = tempfile.mkdtemp(prefix="sbp-stream-", dir=args.dir)
    with open(os.path.join(place, "stream.yaml"), "w", encoding="ascii") as file:
        file.write(PIPELINE)
    started = time.time()
    pack = subprocess.Popen(["zstd", "-q", "-3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    command = [os.path.abspath(args.sbp), "run", "stream.yaml", "--cpu", str(args.threads), "--json"]
    run = subprocess.Popen(command, cwd=place, stdin=pack.stdout, stdout=subprocess.PIPE)
    pack.stdout.close()
    lines = []
    for line in documents(args.gb * 1e9, args.seed):
        lines.append(line)
        if len(lines) == 1000:
            pack.stdin.write("".join(lines).encode())
            lines.clear()
    pack.stdin.write("".join(lines).encode())
    pack.stdin.close()
    pack.wait()
    piped = time.time()
    summary = json.loads(run.communicate()[0])
    if summary["state"] != "done":
        raise SystemExit(f"the run ended {summary['state']}; see {place}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sizes = {
        name: sum(os.path.getsize(os.path.join(dir, file)) for dir, _, files in os.walk(os.path.join(place, ".sbp", name)) for file in files)
        for name in ["store", "work"]
    }
    figures = {
        "gb": args.gb,
        "state": summary["state"],
        "nodes": summary["nodes"],
        "made_and_piped_s": round(piped - started),
        "run_s": round(time.time() - piped),
        # Of `zstd`, which is small, and of the run.
        "children_cpu_s": round(used.ru_utime + used.ru_stime),
        "peak_rss_mib": round(used.ru_maxrss / 1024),
        "store_gb": round(sizes["store"] / 1e9, 2),
        "load": os.getloadavg()[0],
    }
    for node in ["read", "clean", "dedup", "tokens"]:
        shown = subprocess.run([command[0], "show", node, "--json"], cwd=place, stdout=subprocess.PIPE, check=True)
        metrics = json.loads(shown.stdout)["attempts"][-1]["metrics"]
        figures[node] = {name: value for name, value in metrics.items() if name.startswith("n_") or name == "peak_memory_mib"}
    print(json.dumps(figures))
    if not args.keep:
        subprocess.run(["chmod", "-R", "u+w", place], check=False)
        shutil.rmtree(place)


if __name__ == "__main__":
    main()

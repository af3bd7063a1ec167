"""Writes random numbers; goes on where an attempt that was killed had come to."""

import json
import os
import random

task = json.load(open(os.environ["SBP_TASK"]))
n, seed = task["params"]["n"], task["params"]["seed"]
saved = os.path.join(task["checkpoint_dir"], "numbers.txt")

# The last line may have been cut off, so only whole ones count.
lines = []
if os.path.exists(saved):
    lines = [line for line in open(saved) if line.endswith("\n")][:n]
with open(saved, "w") as out:
    out.writelines(lines)
    for i in range(len(lines), n):
        # Each number has a generator of its own: where a run went on changes nothing.
        out.write(f"{random.Random(f'{seed}/{i}').random():.6f}\n")
        if (i + 1) % 100 == 0:
            out.flush()
            print(f"::sbp progress {i + 1}/{n} numbers", flush=True)

target = os.path.join(task["outputs"]["numbers"], "numbers.txt")
with open(saved) as done, open(target, "w") as out:
    out.write(done.read())
print(f"::sbp result n={n}", flush=True)

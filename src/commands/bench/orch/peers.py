#!/usr/bin/env python3
"""Runs `sbp bench orch` and other engines one after the other, and prints one table.

    pip install ninja doit luigi; apt install make
    peers.py --sbp target/release/sbp --n 1000

Every engine gets the same graph: N independent tasks, each of which writes a small file (for `sbp` also tasks that
write nothing, on threads and in processes of their own). `sbp` alone makes each file and each step durable. CPU is user + system time of the whole process tree, from `wait4`; it is what to compare on a busy
machine. A task of make, ninja and doit is a shell that runs builtins only, so `spawn` is what starting those costs by
itself. An engine that is not installed is left out.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

BODY = "printf . >> count; : > {out}"


def cpu(command, folder):
    """CPU seconds and exit code of a command with all its children."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        quiet = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    _, status, usage = os.wait4(pid, 0)
    return usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024


def spawn(folder, n):
    script = f"i=0; while [ $i -lt {n} ]; do sh -c 'printf . >> count; : > out/'$i; i=$((i+1)); done"
    return ["sh", "-c", script]


def make(folder, n):
    rules = "".join(f"out/{i}: in/{i}\n\t@{BODY.format(out=f'out/{i}')}\n" for i in range(n))
    (folder / "Makefile").write_text(f"all: {' '.join(f'out/{i}' for i in range(n))}\n{rules}")
    return ["make", "-s", "-j2"]


def ninja(folder, n):
    builds = "".join(f"build out/{i}: t in/{i}\n" for i in range(n))
    (folder / "build.ninja").write_text(f"rule t\n  command = {BODY.format(out='$out')}\n{builds}")
    return ["ninja", "--quiet", "-j", "2"]


def doit(folder, n):
    (folder / "dodo.py").write_text(f"""
DOIT_CONFIG = {{'backend': 'sqlite3', 'verbosity': 0}}
def task_t():
    for i in range({n}):
        yield {{'name': str(i), 'actions': [f'printf . >> count; : > out/{{i}}'], 'file_dep': [f'in/{{i}}'],
               'targets': [f'out/{{i}}']}}
""")
    return ["doit", "-n", "2"]


def luigi(folder, n):
    (folder / "tasks.py").write_text(f"""
import luigi
class T(luigi.Task):
    i = luigi.IntParameter()
    def output(self): return luigi.LocalTarget(f'out/{{self.i}}')
    def run(self):
        with open('count', 'a') as f: f.write('.')
        with self.output().open('w') as f: f.write('x')
class All(luigi.WrapperTask):
    def requires(self): return [T(i=i) for i in range({n})]
luigi.build([All()], local_scheduler=True, workers=1, log_level='WARNING')
""")
    return [sys.executable, "tasks.py"]


PEERS = [("spawn", "process", spawn), ("make", "process", make), ("ninja", "process", ninja),
         ("doit", "process", doit), ("luigi", "in process", luigi)]


def measure(name, kind, set_up, n):
    folder = Path(tempfile.mkdtemp(prefix=f"peers-{name}-"))
    try:
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        for i in range(n):
            (folder / f"in/{i}").write_text(f"{i}\n")
        command = set_up(folder, n)
        cold, code, rss = cpu(command, folder)
        ran = (folder / "count").stat().st_size if (folder / "count").exists() else 0
        if code or ran != n:
            return None
        idle = sorted(cpu(command, folder)[0] for _ in range(3))[1] if name != "spawn" else None
        again = (folder / "count").stat().st_size - ran
        return [name, kind, 1e3 * cold / n, None if idle is None else 1e3 * idle, again if idle is not None else None, rss]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ours(sbp, n, kind):
    """The figures of the engine's own bench, which starts a process for each measurement."""
    command = [sbp, "bench", "orch", "--n", str(n), "--kind", kind, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--sbp", default="target/release/sbp")
    options.add_argument("--n", type=int, default=1000)
    given = options.parse_args()
    inline, process = (ours(given.sbp, given.n, kind) for kind in ("inline", "process"))
    rows = [["sbp, no files", "in process", inline["cold_cpu_ms_per_task"], inline["noop_cpu_ms"], 0, inline["peak_rss_mib"]],
            ["sbp, a file each", "in process", inline["cold_files_cpu_ms_per_task"], inline["noop_files_cpu_ms"], 0, None],
            ["sbp, no files", "own process", process["cold_cpu_ms_per_task"], process["noop_cpu_ms"], 0, process["peak_rss_mib"]],
            ["sbp, starting itself alone", "own process", process["spawn_cpu_ms_per_task"], None, None, None],
            ["sbp, a shell and a file each", "process", process["program_cpu_ms_per_task"], None, None, None]]
    rows += filter(None, (measure(name, kind, set_up, given.n) for name, kind, set_up in PEERS))
    print(f"{given.n} tasks, two at a time, load {os.getloadavg()[0]:.1f}")
    print("| engine | tasks | cold, CPU ms a task | nothing to do, CPU ms | ran again | peak MiB |\n|---|---|---|---|---|---|")
    for row in rows:
        cells = ["–" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        print("| " + " | ".join(cells) + " |")
    print(json.dumps(inline))
    print(json.dumps(process))


main()

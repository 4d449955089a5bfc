"""The command line: see the package's docstring."""

import argparse
import collections
import gc
import subprocess
import sys
import time
import traceback

from .check import check
from .plan import draw


def run(first, count, report):
    """Cases first to first + count - 1; report(seed, failure, refusals, plan) after each."""
    gc.collect()
    gc.freeze()
    for seed in range(first, first + count):
        report(seed, *outcome(seed))


def outcome(seed, progress=lambda side: None):
    try:
        plan, failure, refusals = check(seed, progress)
    except Exception:
        return "broken | the test itself", traceback.format_exc(), []
    if failure is None:
        return "", "", refusals
    return failure.kind, f"{failure.text}\n  what is left of it: {plan}", refusals


def worker(first, count):
    """One line before each case, so that a crash leaves its seed, and one with what came of it."""

    def report(seed, kind, text, refusals):
        print(f"done\t{kind}\t{text!r}\t{refusals!r}", flush=True)

    gc.collect()
    gc.freeze()
    for seed in range(first, first + count):
        print(f"case\t{seed}", flush=True)
        report(seed, *outcome(seed, lambda side: print(f"side\t{side}", flush=True)))


class Tally:
    def __init__(self):
        self.kinds, self.refused, self.cases = {}, collections.Counter(), 0

    def add(self, seed, kind, text, refusals):
        self.cases += 1
        self.refused.update(refusal[:110] for refusal in refusals)
        if kind:
            new = kind not in self.kinds
            self.kinds.setdefault(kind, []).append(seed)
            if new:
                print(f"{seed}: {kind}\n    {text}", flush=True)

    def summary(self, seconds):
        total = sum(map(len, self.kinds.values()))
        print(f"\n{self.cases} cases, {total} failures of {len(self.kinds)} kinds, {seconds:.0f} s")
        for kind, seeds in sorted(self.kinds.items(), key=lambda item: -len(item[1])):
            print(f"{len(seeds):5}  {kind}  (--case {min(seeds)})")
        if self.refused:
            print("\nrefused by TrainStep, run by the loop then:")
            for reason, n in self.refused.most_common(40):
                print(f"{n:5}  {reason!r}")


def in_processes(first, count, processes, tally, chunk=500):
    """Chunks in processes of their own; where one dies, its case fails and the rest goes on."""
    waiting = [(s, min(chunk, first + count - s)) for s in range(first, first + count, chunk)]
    running = []
    while waiting or running:
        while waiting and len(running) < processes:
            start, size = waiting.pop(0)
            command = [sys.executable, "-X", "faulthandler", "-m", __package__]
            command += ["--worker", str(start), str(size)]
            out = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            running.append((out, start, size))
        process, start, size = running.pop(0)
        lines, stderr = process.communicate()
        seed, side = start - 1, "none"
        for line in lines.splitlines():
            word, *rest = line.split("\t")
            if word == "case":
                seed = int(rest[0])
            elif word == "side":
                side = rest[0]
            elif word == "done":
                tally.add(seed, rest[0], eval(rest[1]), eval(rest[2]))
        if process.returncode:
            plan = draw(seed)
            kind = f"{plan.entry}: {plan.name(100)} | crash of {side}"
            tally.add(seed, kind, f"status {process.returncode}\n{stderr[-2000:]}", [])
            if seed + 1 < start + size:
                waiting.insert(0, (seed + 1, start + size - seed - 1))


def main():
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone, in this process")
    parser.add_argument("--processes", type=int, default=0, help="0: all in this one")
    parser.add_argument("--verbose", action="store_true", help="the plan of --case")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)
    tally, began = Tally(), time.monotonic()
    if arguments.case is not None:
        if arguments.verbose:
            print(draw(arguments.case))
        tally.add(arguments.case, *outcome(arguments.case))
    elif arguments.processes:
        in_processes(arguments.start, arguments.cases, arguments.processes, tally)
    else:
        run(arguments.start, arguments.cases, tally.add)
    tally.summary(time.monotonic() - began)
    return int(bool(tally.kinds))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Runs one machine on two engines, with counted time, and compares their states as they go.

usage: tools/lockstep.py [--engines A,B] [--every N] [--to N] [--memory N] [--doppel FILE] -- OPTION...

The options after -- are those of 'doppel run' (without --engine, --clock and --state-log); the machine must get no input
from outside. Each N instructions (a million) both states must agree, each so many of these (--memory) the contents of
memory, too. Where they do not, the first instruction after which they differ is looked for, and both states are
printed. Status flags that differ while all else agrees, there and further on, are only counted: a translator need not keep
flags that are overwritten before anybody looks at them.

The engine under test is B; A is stepped to find the place. Near it B runs its last 48 instructions one by one, so the
instruction at fault may lie up to a block and 48 instructions before the one that is named.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time


class Runner:
    def __init__(self, doppel, options, directory):
        self.doppel, self.options, self.directory, self.runs = doppel, options, directory, 0

    def start(self, engine, **settings):
        """A run, and the file its log goes to."""
        self.runs += 1
        path = os.path.join(self.directory, "%d.log" % self.runs)
        log = path + "".join(",%s=%d" % item for item in settings.items() if item[1] is not True and item[1])
        log += "".join(",%s" % name for name, value in settings.items() if value is True)
        command = [self.doppel, "run", "--engine", engine, "--clock", "instructions", "--state-log", log, *self.options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return process, path

    def finish(self, started):
        """The log, once the run has ended. One that goes wrong on the way may end as it likes."""
        process, path = started
        errors = process.communicate()[1]
        if not os.path.exists(path):
            sys.exit("lockstep: doppel ended with status %d: %s" % (process.returncode, errors.strip()))
        return path

    def finish_both(self, runs):
        """Both logs. Where they differ, one may never end: it is stopped after the other's end."""
        while all(process.poll() is None for process, _ in runs):
            time.sleep(0.2)
        time.sleep(1)
        while any(process.poll() is None for process, _ in runs):
            logs = [read_lines(path)[:-1] for _, path in runs]
            where = first_difference(*logs)[0]
            if where is not None and where < min(map(len, logs)):
                for process, _ in runs:
                    process.kill()
            time.sleep(1)
        return [read_lines(self.finish(run)) for run in runs]

    def lines(self, engine, **settings):
        return read_lines(self.finish(self.start(engine, **settings)))


def read_lines(path):
    with open(path) as log:
        return [line.split() for line in log if not line.startswith(" ")]


def first_difference(a, b):
    """The index of the first line that differs but for flags, and how often flags did; None: there is none."""
    flags = 0
    for i, (x, y) in enumerate(zip(a, b)):
        if x[:3] + x[4:] != y[:3] + y[4:]:
            return i, flags
        flags += x[3] != y[3]
    return (min(len(a), len(b)) if len(a) != len(b) else None), flags


def narrow(runner, engines, good, bad):
    """Bisects: B agrees with A after `good` instructions and does not after `bad`."""
    wanted = {int(line[0]): line[1:3] for line in runner.lines(engines[0], every=1, **{"from": good + 1}, to=bad)}
    while bad - good > 1:
        middle = (good + bad) // 2
        line = runner.lines(engines[1], **{"from": middle}, to=middle)[0]
        good, bad = (middle, bad) if line[1:3] == wanted[middle] else (good, middle)
        print("lockstep: %d agrees, %d does not" % (good, bad), file=sys.stderr)
    return bad


def registers(runner, engine, count):
    path = runner.finish(runner.start(engine, **{"from": count}, to=count, registers=True))
    with open(path) as log:
        return log.read().splitlines()


def show(runner, engines, count):
    before, *after = [registers(runner, engine, at) for engine, at in
                      ((engines[0], count - 1), (engines[0], count), (engines[1], count))]
    print("first difference after %d instructions" % count)
    print("before it, on %s:" % engines[0])
    print("\n".join(before))
    print("\nafter it, what differs (- %s, + %s):" % tuple(engines))
    for x, y in zip(*after):
        if x != y:
            print("-" + x + "\n+" + y)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("--engines", default="interp,dbt")
    parser.add_argument("--every", type=int, default=1000000)
    parser.add_argument("--to", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--doppel", default=os.path.join(os.path.dirname(__file__), "..", "build", "doppel"))
    parser.add_argument("options", nargs="*")
    words = parser.parse_args()
    engines = words.engines.split(",")
    with tempfile.TemporaryDirectory() as directory:
        runner = Runner(words.doppel, words.options, directory)
        settings = {"every": words.every, "to": words.to, "memory": words.memory}
        runs = [runner.start(engine, **settings) for engine in engines]
        logs = runner.finish_both(runs)
        where, flags = first_difference(*logs)
        if where is None:
            print("%s and %s agree: %d states, the last after %s instructions; flags that nobody reads differed in %d" %
                  (*engines, len(logs[0]), logs[0][-1][0], flags))
            return 0
        if where == min(map(len, logs)):
            print("%s and %s differ in how long they run: %s and %s instructions" % (*engines, logs[0][-1][0], logs[1][-1][0]))
            return 1
        bad = int(logs[0][where][0])
        good = int(logs[0][where - 1][0]) if where else 0
        if logs[0][where][1:3] == logs[1][where][1:3]:
            print("memory differs after %d instructions, while the processor's states agree; it agreed before at the line "
                  "with memory ahead of that" % bad)
            return 1
        show(runner, engines, narrow(runner, engines, good, bad))
        return 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Times what it takes to restore a booted guest, and what it holds in memory afterwards.

usage: bench/restore.py [--runs N] [--memory SIZE]

A Debian cloud kernel with 1 GiB boots to a shell, which then prints dots for ever, and a snapshot
is taken. It is restored on each engine. Shown are the medians (and the range) of the time from
starting the program to the guest's first instruction executed, of the processor time that the program has
used until then (which a busy host does not change much), of the time to the first byte that the guest
prints, and of the memory one second later: resident, and of that what is the process's own.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "boot"))

from machine import DOPPEL, Machine, Monitor  # noqa: E402
from snapshots import booted                  # noqa: E402


def busy_snapshot(folder, memory):
    """A snapshot of a guest that prints all the time."""
    socket, path = os.path.join(folder, "monitor"), os.path.join(folder, "snapshot")
    with Machine(os.path.join(folder, "log"), "--monitor", "socket:" + socket, restore=booted(memory=memory)) as machine:
        machine.send("while :; do echo .; done\n")
        machine.expect(r"^\.$")
        with Monitor(socket) as monitor:
            monitor.snapshot(path)
    return path


def memory_of(pid):
    figures = {}
    with open("/proc/%d/smaps_rollup" % pid, encoding="ascii") as file:
        for line in file:
            words = line.split()
            if words[0] in ("Rss:", "Private_Dirty:", "Private_Clean:"):
                figures[words[0]] = int(words[1]) / 1024
    return figures["Rss:"], figures["Private_Dirty:"] + figures["Private_Clean:"]


def restore(path, engine, log):
    with open(log, "w", encoding="ascii") as trace:
        start = time.monotonic()
        process = subprocess.Popen([DOPPEL, "restore", path, "--engine", engine, "--trace", "cpu_start"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=trace)
    os.read(process.stdout.fileno(), 1)
    first = time.monotonic() - start
    end = time.monotonic() + 1
    while time.monotonic() < end:
        os.read(process.stdout.fileno(), 65536)
    resident, own = memory_of(process.pid)
    process.kill()
    process.wait()
    with open(log, encoding="ascii") as trace:
        moment, used = map(int, re.search(r"first instruction at (\d+) us.* after (\d+) us", trace.read()).groups())
    return {"first instruction, ms": moment / 1000 - start * 1000, "processor time, ms": used / 1000, "first byte, ms": first * 1000, "resident, MiB": resident, "own, MiB": own}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--memory", default="1G")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doppel-restore-") as folder:
        path = busy_snapshot(folder, arguments.memory)
        size = sum(os.stat(os.path.join(path, name)).st_blocks * 512 for name in os.listdir(path))
        print("the snapshot has %.0f MiB on the disk" % (size / 2 ** 20))
        for engine in ("interp", "dbt"):
            runs = [restore(path, engine, os.path.join(folder, "log")) for _ in range(arguments.runs)]
            for name in runs[0]:
                values = [run[name] for run in runs]
                print("%-7s %-21s %8.1f  (%.1f to %.1f)" % (engine, name, statistics.median(values), min(values), max(values)))


main()

#!/usr/bin/env python3
"""Times the boot of Debian's cloud kernel on doppel's engines and, where it is installed, on QEMU's TCG.

usage: bench/boot.py [--runs N] [--cpus N] [--only interp|dbt|cold|saved|qemu]... [--work NAME]

The programs run in turn, so that a machine whose speed drifts is fair to all.
Each run boots to the first line of user space with a quiet console and 512 MiB, and powers off.
Shown are the medians (and the range) of the time to that line, the time to the end, the processor
time used, the most memory held, and for doppel the guest instructions carried out a second of
processor time. `dbt` keeps translations for the run only, `cold` saves them to an empty cache, `saved` finds those of an earlier boot. --work names what the guest does then: one of the tests in tools/guest/init.
"""
import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import guests

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QEMU = "qemu-system-x86_64"
# Names of the runs of doppel, their engines, and what they do with translations.
DOPPEL = {"interp": "interp", "dbt": "dbt", "cold": "dbt", "saved": "dbt"}


def asset(kind):
    return subprocess.run([os.path.join(ROOT, "tools", "asset"), kind, "cloud"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout.strip()


def commands(cpus, work, cache):
    kernel, initramfs = asset("kernel"), asset("initramfs")
    append = "console=ttyS0 quiet panic=-1 doppel.test=" + work
    for name, engine in DOPPEL.items():
        kept = os.path.join(cache, name) if name in ("cold", "saved") else "memory"
        yield name, [guests.doppel(), "run", "--engine", engine, "--translation-cache", kept, "--memory", "512M",
                       "--cpus", str(cpus), "--counters", "--kernel", kernel, "--initrd", initramfs, "--append", append,
                       "--no-reboot"]
    if shutil.which(QEMU):
        yield "qemu", [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512M", "-smp", str(cpus),
                       "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-monitor", "none",
                       "-kernel", kernel, "-initrd", initramfs, "-append", append, "-no-reboot"]


def run(command):
    """One boot: the figures by name."""
    start, ready, text = time.monotonic(), None, []
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in process.stdout:
        if ready is None and b"DOPPEL-READY" in line:
            ready = time.monotonic() - start
        text.append(line.decode(errors="replace"))
    _, status, usage = os.wait4(process.pid, 0)
    if status or ready is None:
        sys.exit("boot.py: %s ended with status %d:\n%s" % (command[0], status, "".join(text[-10:])))
    figures = {"to user space, s": ready, "to power-off, s": time.monotonic() - start,
               "processor time, s": usage.ru_utime + usage.ru_stime, "memory, MiB": usage.ru_maxrss / 1024}
    instructions = re.search(r"^instructions\s+(\d+)", "".join(text), re.MULTILINE)
    if instructions:
        figures["instructions, millions"] = int(instructions[1]) / 1e6
        figures["MIPS"] = int(instructions[1]) / 1e6 / figures["processor time, s"]
    return figures


def measure(arguments, cache):
    programs = {name: command for name, command in commands(arguments.cpus, arguments.work, cache)
                if not arguments.only or name in arguments.only}
    runs = {name: [] for name in programs}
    if "saved" in programs:
        run(programs["saved"])
    for _ in range(arguments.runs):
        for name, command in programs.items():
            shutil.rmtree(os.path.join(cache, "cold"), ignore_errors=True)
            runs[name].append(run(command))
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--work", default="cpu")
    parser.add_argument("--only", choices=[*DOPPEL, "qemu"], action="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        runs = measure(arguments, cache)
    for name, results in runs.items():
        for figure in results[0]:
            values = [figures[figure] for figures in results]
            print("%-8s %-24s %9.2f  (%.2f to %.2f)" % (name, figure, statistics.median(values), min(values), max(values)))
    for figure in ("to user space, s", "processor time, s"):
        medians = {name: statistics.median(figures[figure] for figures in results) for name, results in runs.items()}
        if "saved" in medians:
            print("%-33s saved takes %s" % (figure.split(",")[0], ", ".join(
                "%.2f of %s" % (medians["saved"] / value, name) for name, value in medians.items() if name != "saved")))


if __name__ == "__main__":
    main()

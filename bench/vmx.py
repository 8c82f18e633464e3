#!/usr/bin/env python3
"""What VT-x costs: a guest's guest (L2) on Linux' KVM compared with the guest (L1), a VM exit by itself, and others that do the same.

usage: bench/vmx.py [--engine NAME] [--only doppel|qemu|bochs]...

The same kernel, initramfs and user of KVM is L1 and L2 everywhere: in doppel on VT-x, in QEMU's TCG on SVM, and in Bochs on VT-x, where
they are installed (Debian's packages qemu-system-x86; bochs and seabios). Prints two tables.

First doppel by itself: work in L2 as a multiple of the same in L1, how long the round trip of a CPUID exit is, by a minimal hypervisor
and by KVM, and the processor time that L2's boot takes as a multiple of L1's. Each time but the last is the best of many short
ones, so other load on the host does little harm.

Then all of them: processor time of the whole process for one piece of work, the average of many (Bochs' own clock follows its
instructions, and cannot be asked), and as a multiple of doppel's. Needs a build (build/doppel) and what tools/asset fetches.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "boot"))
from machine import Failure, Machine    # noqa: E402
from snapshots import asset             # noqa: E402
from vmx_peers import PEERS             # noqa: E402

GUESTS = os.path.join(ROOT, "build", "tests", "guest")
CPUIDS = 20         # of one piece of work in tools/guest/speed.c
WORK = "integers", "vectors", "cpuids"
SECONDS = 4 * 3600


def round_trip(engine):
    """Of a CPUID exit in nanoseconds, by the hypervisor of tests/guest/vmx_speed.c."""
    subprocess.run(["ninja", "-C", os.path.join(ROOT, "build"), "tests/guest/run_guest", "tests/guest/vmx_speed.elf"],
                   check=True, stdout=subprocess.DEVNULL)
    said = subprocess.run([os.path.join(GUESTS, "run_guest"), "--engine", engine, "--cpu", "x86-64-v3,vmx=on",
                           os.path.join(GUESTS, "vmx_speed.elf")], check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(re.search(r"round trip: (\d+) ns", said)[1])


def processor_time(machine):
    """Seconds that the machine's process has used: the clock of another process, as clock_getcpuclockid(3) makes it."""
    return time.clock_gettime(~machine.process.pid << 3 | 2)


class Level:
    """What one level measures: the processor time of its boot; best ticks and average seconds of a piece of work."""

    def __init__(self, machine, prefix, start):
        machine.expect(r"^%sDOPPEL-READY" % prefix, SECONDS)
        self.boot = processor_time(machine) - start
        self.mhz = int(machine.expect(r"^%sSPEED mhz (\d+)\s" % prefix, SECONDS)[1])
        self.ticks, self.seconds = {}, {}
        for name in WORK:
            before = processor_time(machine)
            said = machine.expect(r"^%sSPEED %s (\d+) ticks (\d+) rounds" % (prefix, name), SECONDS)
            self.ticks[name] = int(said[1])
            rounds = int(said[2])       # 0: the processor cannot do this
            self.seconds[name] = (processor_time(machine) - before) / rounds if rounds else None


def levels(program, engine, folder):
    """L1 and L2."""
    command, ticks = program
    append = "console=ttyS0 panic=-1 quiet doppel.test=speed,kvm doppel.kvm_test=speed doppel.kvm_features=any " \
             "doppel.speed_ticks=%d doppel.kvm_words=quiet,doppel.speed_ticks=%d" % (ticks, ticks)
    kernel, initrd = asset("kernel", "cloud"), asset("hypervisor")
    with Machine(os.path.join(folder, "log"), program=command(folder, engine, kernel, initrd, append)) as machine:
        l1 = Level(machine, "", 0)
        machine.expect(r"^DOPPEL-TEST speed", SECONDS)
        l2 = Level(machine, "L2: ", processor_time(machine))
        machine.result("kvm", SECONDS)
    return l1, l2


def by_itself(engine, l1, l2):
    """The first table."""
    exit_ns = round_trip(engine)
    kvm_ns = (l2.ticks["cpuids"] - l1.ticks["cpuids"]) * 1e3 / l1.mhz / CPUIDS
    for name in ("integers", "vectors"):
        print("%-36s %8.1f us in L1 %8.1f us in L2 %6.2fx"
              % (name, l1.ticks[name] / l1.mhz, l2.ticks[name] / l1.mhz, l2.ticks[name] / l1.ticks[name]))
    print("%-36s %8.2f us" % ("CPUID exit by a minimal hypervisor", exit_ns / 1e3))
    print("%-36s %8.2f us %43.2fx" % ("CPUID exit by KVM", kvm_ns / 1e3, kvm_ns / exit_ns))
    print("%-36s %8.1f s  in L1 %8.1f s  in L2 %6.2fx" % ("boot, processor time", l1.boot, l2.boot, l2.boot / l1.boot))


def compared(measured):
    """The second table: (what, how many microseconds for each program)."""
    for level, prefix in enumerate(("L1", "L2")):
        for name in ("integers", "vectors"):
            yield "%s in %s, us" % (name, prefix), [found[level].seconds[name] and found[level].seconds[name] * 1e6 for found in measured]
    yield "CPUID exit by KVM, us", [(l2.seconds["cpuids"] - l1.seconds["cpuids"]) * 1e6 / CPUIDS for l1, l2 in measured]
    for level, prefix in enumerate(("L1", "L2")):
        yield "boot of %s, s" % prefix, [found[level].boot for found in measured]


def cells(figure, doppel):
    return "%12s%10s" % ("-", "") if figure is None else "%12.4g%9.2fx" % (figure, figure / doppel)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="dbt", help="dbt, the default, or interp")
    parser.add_argument("--only", action="append", choices=list(PEERS), help="may be repeated; default: all that are installed")
    arguments = parser.parse_args()
    measured = {}
    for name, (needs, *program) in PEERS.items():
        missing = [path for path in needs if not os.path.exists(path)]
        if arguments.only and name not in arguments.only:
            continue
        if missing:
            print("vmx.py: without %s: there is no %s" % (name, missing[0]), file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                measured[name] = levels(program, arguments.engine, folder)
            except Failure as failure:
                with open(os.path.join(folder, "log"), encoding="utf-8", errors="replace") as log:
                    print("vmx.py: %s: %s\n%s" % (name, failure, "".join(log.readlines()[-20:])), file=sys.stderr)
                continue
        if name == "doppel":
            by_itself(arguments.engine, *measured[name])
    if set(measured) - {"doppel"}:
        print("\n%-24s" % "processor time" + "".join("%12s%10s" % (name, "") for name in measured))
        for what, figures in compared(list(measured.values())):
            print("%-24s" % what + "".join(cells(figure, figures[0]) for figure in figures))


main()

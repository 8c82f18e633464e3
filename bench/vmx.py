#!/usr/bin/env python3
"""What VT-x costs: a guest's guest (L2) on Linux' KVM compared with the guest (L1), and a VM exit by itself.

usage: bench/vmx.py [--engine NAME]

Prints work in L2 as a multiple of the same in L1, how long the round trip of a CPUID exit is, by a minimal hypervisor and by KVM, and
the processor time that L2's boot takes as a multiple of L1's. Each time is the best of many short ones, so other load on the host
does little harm. Needs a build (build/doppel) and what tools/asset fetches.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "boot"))
from machine import Machine             # noqa: E402
from snapshots import asset             # noqa: E402

GUESTS = os.path.join(ROOT, "build", "tests", "guest")
CPUIDS = 20         # of one piece of work in tools/guest/speed.c
SECONDS = 3600


def round_trip(engine):
    """Of a CPUID exit in nanoseconds, by the hypervisor of tests/guest/vmx_speed.c."""
    subprocess.run(["ninja", "-C", os.path.join(ROOT, "build"), "tests/guest/run_guest", "tests/guest/vmx_speed.elf"],
                   check=True, stdout=subprocess.DEVNULL)
    said = subprocess.run([os.path.join(GUESTS, "run_guest"), "--engine", engine, "--cpu", "x86-64-v3,vmx=on",
                           os.path.join(GUESTS, "vmx_speed.elf")], check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(re.search(r"round trip: (\d+) ns", said)[1])


def processor_time(machine):
    """Seconds of user and system time that the machine's process has used."""
    with open("/proc/%d/stat" % machine.process.pid, encoding="ascii") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def speeds(machine, prefix):
    found = {"mhz": int(machine.expect(r"^%sSPEED mhz (\d+)\s" % prefix, SECONDS)[1])}
    for name in ("integers", "vectors", "cpuids"):
        found[name] = int(machine.expect(r"^%sSPEED %s (\d+) ticks" % (prefix, name), SECONDS)[1])
    return found


def levels(engine):
    """What L1 and L2 measure, and the processor time of their boots."""
    with tempfile.TemporaryDirectory() as folder, Machine(
            os.path.join(folder, "log"), "--memory", "768M", "--cpu", "i7-7500U", "--engine", engine, "--no-reboot", "--kernel",
            asset("kernel", "cloud"), "--initrd", asset("hypervisor"), "--append",
            "console=ttyS0 panic=-1 quiet doppel.test=speed,kvm doppel.kvm_test=speed") as machine:
        machine.expect(r"^DOPPEL-READY", SECONDS)
        boots = [processor_time(machine)]
        work = [speeds(machine, "")]
        machine.expect(r"^DOPPEL-TEST speed", SECONDS)
        before = processor_time(machine)
        machine.expect(r"^L2: DOPPEL-READY", SECONDS)
        boots.append(processor_time(machine) - before)
        work.append(speeds(machine, "L2: "))
        machine.result("kvm", SECONDS)
    return work, boots


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="dbt", help="dbt, the default, or interp")
    engine = parser.parse_args().engine
    exit_ns = round_trip(engine)
    (l1, l2), boots = levels(engine)
    mhz = l1["mhz"]
    kvm_ns = (l2["cpuids"] - l1["cpuids"]) * 1e3 / mhz / CPUIDS
    for name in ("integers", "vectors"):
        print("%-36s %8.1f us in L1 %8.1f us in L2 %6.2fx" % (name, l1[name] / mhz, l2[name] / mhz, l2[name] / l1[name]))
    print("%-36s %8.2f us" % ("CPUID exit by a minimal hypervisor", exit_ns / 1e3))
    print("%-36s %8.2f us %43.2fx" % ("CPUID exit by KVM", kvm_ns / 1e3, kvm_ns / exit_ns))
    print("%-36s %8.1f s  in L1 %8.1f s  in L2 %6.2fx" % ("boot, processor time", *boots, boots[1] / boots[0]))


main()

#!/usr/bin/env python3
"""Measures how long firmware takes from exec to GRUB's menu, in Doppel and in QEMU's TCG, one after the other on this machine.

usage: bench/firmware.py [--rounds N] [--disk FILE]

The disk is that of `tools/asset disk`; nothing is written to it. Each round runs all four: SeaBIOS and OVMF, each in both. The table
gives the medians of time and of processor time, which other work on the machine disturbs less, and the ratio of Doppel's to
QEMU's. DOPPEL names another program to measure.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOPPEL = os.environ.get("DOPPEL", os.path.join(ROOT, "build", "doppel"))
OVMF = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
MENU = b"GNU GRUB"
LIMIT_SECONDS = 300


def doppel(firmware, disk, folder):
    return [DOPPEL, "run", disk, "--ephemeral", "--memory", "512M", "--firmware", firmware]


def qemu(firmware, disk, folder):
    command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "512", "-display", "none", "-serial", "stdio", "-nic", "none",
               "-drive", "file=%s,format=raw,if=virtio,snapshot=on" % disk]
    if firmware == "uefi":
        variables = os.path.join(folder, "variables.fd")
        shutil.copy(VARIABLES, variables)
        command += ["-drive", "if=pflash,format=raw,readonly=on,file=" + OVMF, "-drive", "if=pflash,format=raw,file=" + variables]
    return command


def seconds_to_menu(command):
    """How long it took, and how much processor time."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen = b""
    try:
        os.set_blocking(process.stdout.fileno(), False)
        while MENU not in seen:
            data = process.stdout.read()
            if data == b"" or time.monotonic() - start > LIMIT_SECONDS:
                sys.exit("firmware.py: no menu from '%s': %r" % (" ".join(command), seen[-300:]))
            seen = (seen + (data or b""))[-65536:]
            time.sleep(0.005)
        wall = time.monotonic() - start
    finally:
        process.terminate()
        _, process.returncode, usage = os.wait4(process.pid, 0)
    return wall, usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", help="a raw disk image whose GRUB shows a menu on the serial line")
    arguments = parser.parse_args()
    disk = arguments.disk or subprocess.run([os.path.join(ROOT, "tools", "asset"), "disk"], stdout=subprocess.PIPE, text=True,
                                            check=True).stdout.strip()
    times = {}
    for _ in range(arguments.rounds):
        for firmware in ("bios", "uefi"):
            for program in (doppel, qemu):
                with tempfile.TemporaryDirectory(prefix="doppel-bench-") as folder:
                    times.setdefault((firmware, program), []).append(seconds_to_menu(program(firmware, disk, folder)))
    print("exec to GRUB's menu, median of %d rounds" % arguments.rounds)
    for firmware, name in (("bios", "SeaBIOS"), ("uefi", "OVMF")):
        for i, what in enumerate(("time", "processor time")):
            ours, theirs = (statistics.median(sample[i] for sample in times[firmware, program]) for program in (doppel, qemu))
            print("%-8s %-15s doppel %6.2f s   qemu %6.2f s   ratio %.2f" % (name, what, ours, theirs, ours / theirs))


main()

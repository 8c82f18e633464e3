#!/usr/bin/env python3
"""Times small kernels on the host, on doppel's software engines and, where it is installed, on QEMU's TCG.

usage: bench/engines.py [--runs N]

The same static program is run natively and as the only process of Debian's cloud kernel. Shown are medians
in milliseconds, how many times slower than native, and how many times faster than TCG the translator is.
"""
import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QEMU = "qemu-system-x86_64"
APPEND = "console=ttyS0 quiet panic=-1"


def cpio(folder, program):
    """An initramfs (newc format) that holds /dev/console and the program as /init."""
    with open(program, "rb") as file:
        data = file.read()
    out = b""
    entries = [("dev", 0o40755, b"", 0, 0), ("dev/console", 0o20600, b"", 5, 1), ("init", 0o100755, data, 0, 0),
               ("TRAILER!!!", 0, b"", 0, 0)]
    for number, (name, mode, body, major, minor) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += head + bytes(-len(head) % 4) + body + bytes(-len(body) % 4)
    path = os.path.join(folder, "initramfs")
    with open(path, "wb") as file:
        file.write(out)
    return path


def measure(command):
    text = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False, timeout=600).stdout.decode(errors="replace")
    found = {name: float(seconds) for name, seconds in re.findall(r"KERNEL ([a-z ]+): ([0-9.]+)", text)}
    if not found:
        sys.exit("engines.py: %s said:\n%s" % (command[0], text[-2000:]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    kernel = subprocess.run([os.path.join(ROOT, "tools", "asset"), "kernel", "cloud"], check=True,
                            stdout=subprocess.PIPE, text=True).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="doppel-bench-") as folder:
        program = os.path.join(folder, "guest")
        subprocess.run(["gcc", "-O2", "-static", "-o", program, os.path.join(ROOT, "bench", "engines_guest.c")], check=True)
        boot = ["-kernel", kernel, "-initrd", cpio(folder, program), "-append", APPEND, "-no-reboot"]
        doppel = [os.path.join(ROOT, "build", "doppel"), "run", "--memory", "512M"] + \
                 [word.replace("-", "--", 1) if word.startswith("-") and index % 2 == 0 else word
                  for index, word in enumerate(boot)]
        commands = {"native": [program], "interp": doppel + ["--engine", "interp"], "dbt": doppel + ["--engine", "dbt"]}
        if shutil.which(QEMU):
            commands["tcg"] = [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512M", "-nodefaults",
                               "-no-user-config", "-display", "none", "-serial", "stdio", "-monitor", "none"] + boot
        results = {}
        for _ in range(runs):       # side by side: one run of each, then again
            for name, command in commands.items():
                for what, seconds in measure(command).items():
                    results.setdefault(what, {}).setdefault(name, []).append(seconds)
    print("%-18s" % "kernel" + "".join("%14s" % name for name in commands) + "   x native" + "   tcg/dbt")
    for what, times in results.items():
        median = {name: statistics.median(times[name]) for name in commands if name in times}
        row = "%-18s" % what + "".join("%11.1f ms" % (1000 * median[name]) if name in median else "%14s" % "-"
                                       for name in commands)
        if "dbt" in median:
            row += "%11.1f" % (median["dbt"] / median["native"])
            row += "%10.1f" % (median["tcg"] / median["dbt"]) if "tcg" in median else ""
        print(row, flush=True)


main()

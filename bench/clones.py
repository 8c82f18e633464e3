#!/usr/bin/env python3
"""Times many clones of one booted guest, and what they hold in memory together.

usage: bench/clones.py [--count N] [--memory SIZE] [--debian]

A Debian cloud kernel with 1 GiB boots to a shell (with --debian: Debian 12 with systemd, from its
disk, to a login), and `doppel clone` makes N copies. Then a line is typed on the console of each.
Shown are the time from the command's start to its end (all copies run), to the last of their
answers, and the memory: the sum of the processes' proportional shares (PSS), in which a page that
25 processes share counts once.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "boot"))

from machine import DOPPEL          # noqa: E402
from snapshots import asset, booted  # noqa: E402


class Console:
    """`doppel console` of a machine in the background."""

    def __init__(self, name, environment):
        self.process = subprocess.Popen([DOPPEL, "console", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, env=environment)
        self.seen = b""

    def type(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def expect(self, text, seconds=300):
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data or time.monotonic() > end:
                sys.exit("clones.py: no %r from a machine; it said %r" % (text, self.seen[-300:]))
            self.seen += data

    def close(self):
        self.process.kill()
        self.process.wait()


def proportional_share(pid):
    with open("/proc/%d/smaps_rollup" % pid, encoding="ascii") as file:
        figures = {line.split()[0]: int(line.split()[1]) / 1024 for line in file if line.split()[0].endswith(":")}
    return figures["Pss:"], figures["Rss:"]


def doppel(environment, *words):
    return subprocess.run([DOPPEL, *words], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def start(arguments, folder, environment):
    """The machine `base`, ready to answer on its console."""
    if not arguments.debian:
        doppel(environment, "restore", booted(memory=arguments.memory), "--name", "base", "--detach")
        return
    image = os.path.join(folder, "root.img")
    subprocess.run(["cp", "--sparse=always", asset("rootfs"), image], check=True)
    doppel(environment, "run", "--name", "base", "--detach", "--engine", "dbt", "--memory", arguments.memory, "--disk", image,
           "--net", "user", "--kernel", asset("kernel", "cloud"), "--initrd", asset("initramfs", "cloud"),
           "--append", "console=ttyS0 root=/dev/vda")
    console = Console("base", environment)
    console.expect("doppel-guest login: ", 900)
    console.type("root\n")
    console.expect("Password: ")
    console.type("doppel\n")
    console.expect("root@doppel-guest:~# ")
    console.close()


def measure(arguments, folder, environment):
    begin = time.monotonic()
    names = doppel(environment, "clone", "base", "--count", str(arguments.count), "--directory", os.path.join(folder, "clones")).split()
    running = time.monotonic() - begin
    consoles = [Console(name, environment) for name in names]
    for console in consoles:
        console.type("\necho answer-$((6 * 7))\n")
    for console in consoles:
        console.expect("answer-42")
    answered = time.monotonic() - begin
    for console in consoles:
        console.close()
    status = [line.split() for line in doppel(environment, "ps").splitlines()]
    pids = [int(next(word for word in words if word.isdigit())) for words in status if words[0] in names]
    shares = [proportional_share(pid) for pid in pids]
    print("%d copies run after %.2f s, the last answers after %.2f s" % (len(names), running, answered))
    print("memory: %.0f MiB together (PSS), %.1f MiB each; resident %.0f MiB each" %
          (sum(pss for pss, _ in shares), sum(pss for pss, _ in shares) / len(shares), sum(rss for _, rss in shares) / len(shares)))
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--debian", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doppel-clones-") as folder:
        environment = dict(os.environ, XDG_RUNTIME_DIR=folder)
        names = []
        try:
            start(arguments, folder, environment)
            names = measure(arguments, folder, environment)
        finally:
            subprocess.run([DOPPEL, "stop", "--force", "base", *names], env=environment, check=False)


main()

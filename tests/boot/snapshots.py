"""
Booted machines, kept: the first test that asks for one boots it and takes a snapshot, later ones restore that in milliseconds.

Snapshots lie in the cache of tools/asset, under a name made of everything that they depend on: the program, the guest's
files and the machine's options. Those of earlier programs are removed when a new one is made.
"""
import fcntl
import hashlib
import os
import shutil
import subprocess

from machine import DOPPEL, ROOT, Machine, Monitor

CACHE = os.path.join(os.environ.get("DOPPEL_CACHE", os.path.expanduser("~/.cache/doppel")), "snapshots")
OF_EACH_KIND = 2        # kept: another work tree may use one, too


def asset(*words):
    return subprocess.run([os.path.join(ROOT, "tools", "asset"), *words], check=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True).stdout.strip()


def digest_of(*paths):
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest


def remove_old(kind):
    """The newest ones of the kind stay."""
    same = [os.path.join(CACHE, name) for name in os.listdir(CACHE) if name.rsplit("-", 1)[0] == kind]
    same.sort(key=os.path.getmtime, reverse=True)
    for path in same[OF_EACH_KIND:]:
        shutil.rmtree(path, ignore_errors=True)


def booted(memory="512M", cpus=1, options=(), ready=r"^doppel:/# ", append="quiet"):
    """The directory of a snapshot of the test guest at its shell. Restore it with Machine(log, restore=booted())."""
    kernel, initramfs = asset("kernel", "cloud"), asset("initramfs", "cloud")
    options = ["--memory", memory, "--cpus", str(cpus), "--no-reboot", "--engine", "dbt",
               "--append", "console=ttyS0 panic=-1 " + append, *options]
    digest = digest_of(DOPPEL, kernel, initramfs)
    digest.update("\0".join(options).encode())
    kind = "shell-%s-%d" % (memory, cpus)
    path = os.path.join(CACHE, "%s-%s" % (kind, digest.hexdigest()[:16]))
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(path):
            make(path, [*options, "--kernel", kernel, "--initrd", initramfs], ready)
            remove_old(kind)
    return path


def make(path, options, ready):
    socket, log = path + ".monitor", path + ".log"
    with Machine(log, *options, "--monitor", "socket:" + socket) as machine:
        machine.expect(ready)
        with Monitor(socket) as monitor:
            monitor.snapshot(path)
    os.remove(log)
    if os.path.exists(socket):
        os.remove(socket)

"""Machines kept in snapshots and restored from them."""
import hashlib
import os
import random
import re
import subprocess

from cases import asset, case, web_server
from machine import DOPPEL, Failure, Monitor, exit_status
from snapshots import booted


def take(machine, socket, *words):
    """Takes a snapshot through the monitor's socket. The guest's output that comes meanwhile is read afterwards."""
    with Monitor(socket) as monitor:
        monitor.snapshot(*words)
    machine.read(0)


def say(machine, command, answer):
    machine.command_line(command, "^%s$" % answer)
    machine.expect(r"^doppel:/# ")


@case("a restored machine goes on where it was, twice from one snapshot, and so does the machine that it was taken of")
def snapshot_restore(test):
    socket, base, kept = test.path("monitor"), booted(), test.path("snapshot")
    with test.machine("--monitor", "socket:" + socket, restore=base) as machine:
        say(machine, "kept=$((6 * 7)); seq 1 1000 >/tmp/numbers; echo $((1 + 1))-there", "2-there")
        take(machine, socket, kept)
        say(machine, "echo $kept-$(wc -l </tmp/numbers); kept=43", "42-1000")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))
    for _ in range(2):
        with test.machine(restore=kept) as machine:
            say(machine, "echo $kept-$(wc -l </tmp/numbers)-$(tail -1 /tmp/numbers)", "42-1000-1000")
            machine.send("poweroff -f\n")
            machine.end(exit_status("DONE"))


@case("a differential snapshot holds what changed, and is restored with its parents", cpus=2)
def snapshot_differential(test):
    socket, base = test.path("monitor"), booted(cpus=2)
    chain = [test.path("snapshot%d" % i) for i in range(3)]
    with test.machine("--monitor", "socket:" + socket, restore=base) as machine:
        say(machine, "seq 1 200000 >/tmp/a; echo a-$((1 + 1))", "a-2")
        take(machine, socket, chain[0])
        for i in (1, 2):
            say(machine, "seq 1 %d >/tmp/file%d; echo more-$((1 + 1))" % (1000 * i, i), "more-2")
            take(machine, socket, chain[i], chain[i - 1])
    sizes = [os.stat(os.path.join(path, "ram-0")).st_blocks * 512 for path in chain]
    if max(sizes[1:]) * 2 > sizes[0]:
        raise Failure("the differential snapshots are not smaller: %s bytes" % sizes)
    for i, engine in ((1, "interp"), (2, "dbt")):
        with test.machine("--engine", engine, restore=chain[i]) as machine:
            say(machine, "cat /tmp/a /tmp/file%d | wc -l; ls /tmp/file* | wc -l" % i, "%d\n%d" % (200000 + 1000 * i, i))
            say(machine, "sha256sum /tmp/a | cut -c1-64",
                hashlib.sha256("".join("%d\n" % n for n in range(1, 200001)).encode()).hexdigest())


@case("saved under one engine and restored under the other, again and again in mid-work, a guest reckons right")
def snapshot_engines(test):
    socket, turns = test.path("monitor"), 7
    path = booted()
    want = hashlib.sha256("".join("%d\n" % n for n in range(1, 2001)).encode()).hexdigest()
    chooser, last = random.Random(5), 0
    command = "i=0; while :; do i=$((i + 1)); echo R$i-$(seq 1 2000 | sha256sum | cut -c1-64); done\n"
    for turn in range(turns):
        engine = ("interp", "dbt")[turn % 2]
        with test.machine("--engine", engine, "--monitor", "socket:" + socket, restore=path) as machine:
            if turn == 0:
                machine.send(command)
            for _ in range(8):
                found = machine.expect(r"R(\d+)-([0-9a-f]{64})$")
                if found[2] != want or int(found[1]) <= last:
                    raise Failure("after round %d round %s under %s gives %s" % (last, found[1], engine, found[2]))
                last = int(found[1])
            if turn < turns - 1:
                machine.read(chooser.random() * 0.05)
                path = test.path("turn%d" % turn)
                take(machine, socket, path)


# Writes numbered blocks to the disk with their hashes noted in memory, and fetches a file over and over.
WORK = r"""
write() { n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); at=$((n % 100)); seq $n $((n + 6000)) | head -c 16384 >/tmp/block
dd if=/tmp/block of=/dev/vda bs=16k seek=$at 2>/dev/null; sha256sum </tmp/block >/tmp/sums/$at; echo $n >/tmp/written; done; sync; touch /tmp/write-done; }
fetch() { n=0; while [ ! -e /tmp/stop ]; do timeout 20 wget -q -O /tmp/fetched $1 || { echo lost >>/tmp/lost; continue; }
[ $(sha256sum </tmp/fetched | cut -c1-64) = $2 ] && n=$((n + 1)) || echo bad >>/tmp/bad; echo $n >/tmp/fetches; done; touch /tmp/fetch-done; }
check() { touch /tmp/stop; while [ ! -e /tmp/write-done ] || [ ! -e /tmp/fetch-done ]; do sleep 0.1; done; echo 3 >/proc/sys/vm/drop_caches; bad=0
for at in $(ls /tmp/sums); do [ "$(dd if=/dev/vda bs=16k skip=$at count=1 2>/dev/null | sha256sum)" = "$(cat /tmp/sums/$at)" ] || bad=$((bad + 1)); done
echo CHECK blocks-$(ls /tmp/sums | wc -l) bad-$bad fetches-$(cat /tmp/fetches) wrong-$(cat /tmp/bad 2>/dev/null | wc -l); }
"""


def traffic(test, cycles, chooser):
    """Snapshots in the middle of disk and network traffic, each restored and the next taken of it; all must add up at the end. Some copy the
    disk, some leave it in place: of these not too many, as each makes the chain of images longer."""
    contents = chooser.randbytes(300_000)
    socket, disk = test.path("monitor"), test.disk(mebibytes=16)
    path = None
    with web_server(contents) as port:
        url = "http://10.0.2.2:%d/file" % port
        for turn in range(cycles + 1):
            engine = chooser.choice(("interp", "dbt"))
            how = ["--engine", engine, "--monitor", "socket:" + socket]
            if path:
                disks = test.path("disks%d" % turn)
                os.makedirs(disks)
                machine = test.machine(*how, "--disks", disks, restore=path)
            else:
                machine = test.linux("cloud", *how[2:], "--engine", "dbt", "--disk", disk, "--net", "user", append="quiet")
            with machine:
                if not path:
                    machine.expect(r"^doppel:/# ")
                    start(machine, url, hashlib.sha256(contents).hexdigest())
                machine.read(0.3 + chooser.random() * 0.5)
                if turn == cycles:
                    machine.send("check\n")
                    found = machine.expect(r"^CHECK blocks-(\d+) bad-(\d+) fetches-(\d+) wrong-(\d+)$")
                    if int(found[2]) or int(found[4]) or not int(found[1]) or not int(found[3]):
                        raise Failure("after %d cycles: %s" % (cycles, found[0]))
                    return found[0]
                taken = test.path("cycle%d" % turn)
                differential, overlays = path and chooser.random() < 0.5, test.path("overlays%d" % turn)
                os.mkdir(overlays)
                take(machine, socket, taken, *([path] if differential else []),
                     *(["disks=" + overlays] if turn < 40 and chooser.random() < 0.5 else []))
            path = taken


def start(machine, url, digest):
    for line in WORK.strip().split("\n"):
        machine.send(line + "\n")
    machine.send("mkdir -p /tmp/sums; net >/dev/null 2>&1; write & fetch %s %s & sleep 1; echo begun-$((1 + 1))\n" % (url, digest))
    machine.expect("^begun-2$")


@case("snapshots in the midst of disk and network traffic, ten in a row, each restored: every block and every download is right")
def snapshot_traffic(test):
    traffic(test, 10, random.Random(11))


@case("a hundred snapshots and restores in a row under load", long=True)
def snapshot_cycles(test):
    traffic(test, 100, random.Random(12))


def generation(machine):
    """The generation id as the guest reads it, and how often it was told of a new one."""
    machine.send("echo ID $(devmem 0xfedff000 64)-$(devmem 0xfedff008 64) $(awk '{ print $1 }' /sys/firmware/acpi/interrupts/gpe05)\n")
    found = machine.expect(r"^ID (\S+) (\d+)$")
    return found[1], int(found[2])


@case("each machine that is restored has another generation id, and its guest is told by ACPI; a card's address can be changed")
def snapshot_generation(test):
    socket, kept = test.path("monitor"), test.path("snapshot")
    with test.linux("cloud", "--engine", "dbt", "--monitor", "socket:" + socket, "--net", "user", append="quiet") as machine:
        machine.expect(r"^doppel:/# ")
        first, told = generation(machine)
        take(machine, socket, kept)
        if generation(machine) != (first, told):
            raise Failure("a snapshot changes the machine's own generation id")
    ids = {first}
    for i in (1, 2):
        with test.machine("--net", "user,mac=52:54:00:00:00:0%d" % i, restore=kept) as machine:
            found, now = generation(machine)
            ids.add(found)
            if now <= told:
                raise Failure("the guest was not told of its new generation id")
            say(machine, "cd /sys/bus/virtio/drivers/virtio_net && echo virtio0 >unbind && echo virtio0 >bind; cd /; "
                "cat /sys/class/net/eth0/address", "52:54:00:00:00:0%d" % i)
    if len(ids) != 3:
        raise Failure("the generation ids are not all different: %s" % ids)


def twins(test, moments, seed):
    program = os.path.join(os.path.dirname(DOPPEL), "tests", "state", "state-twin")
    with open(test.log, "ab") as log:
        if subprocess.run([program, asset("kernel", "cloud"), asset("initramfs", "cloud"), str(moments), str(seed)], stdout=log,
                          stderr=log, check=False).returncode:
            raise Failure("a machine restored in mid-boot went another way than one that was not interrupted")


@case("by counted time, a machine saved in mid-boot and restored is 60 million instructions later what it is without that, bit for bit")
def snapshot_lockstep(test):
    twins(test, 2, 7)


@case("the same at thirty moments of the boot", long=True)
def snapshot_lockstep_often(test):
    twins(test, 30, 8)


@case("copies of a machine that runs have disks, addresses and generation ids of their own, and begin with what it had", cpus=2)
def snapshot_clones(test):
    environment = dict(os.environ, XDG_RUNTIME_DIR=test.folder)

    def doppel(*words):
        return subprocess.run([DOPPEL, *words], env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout.split()

    disk, place, ids, cards = test.disk(), test.path("clones"), set(), set()
    doppel("run", "--name", "web", "--detach", "--engine", "dbt", "--memory", "512M", "--disk", disk, "--net", "user",
           "--kernel", asset("kernel", "cloud"), "--initrd", asset("initramfs", "cloud"), "--append", "console=ttyS0 quiet")
    names = []
    try:
        with test.machine(console="web", environment=environment) as console:
            console.expect(r"^doppel:/# ")
            say(console, "echo of-the-base | dd of=/dev/vda conv=fsync 2>/dev/null; kept=$((6 * 7)); echo $kept", "42")
        names = doppel("clone", "web", "--count", "3", "--directory", place)
        if sorted(names) != ["web-1", "web-2", "web-3"]:
            raise Failure("the copies are called %s" % names)
        for name in names:
            with test.machine(console=name, environment=environment) as console:
                console.send("\n")
                say(console, "echo $kept-$(head -c 11 /dev/vda)", "42-of-the-base")
                say(console, "echo of-%s-now | dd of=/dev/vda conv=fsync 2>/dev/null; echo $kept" % name, "42")
                ids.add(generation(console)[0])
                console.send("cd /sys/bus/virtio/drivers/virtio_net; for d in virtio*; do echo $d >unbind; echo $d >bind; done; cd /; "
                             "cat /sys/class/net/eth0/address\n")
                cards.add(console.expect(r"^([0-9a-f:]{17})$")[1])
        for name in names:
            with test.machine(console=name, environment=environment) as console:
                console.send("\n")
                say(console, "echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda", "of-%s-now" % name)
    finally:
        doppel("stop", "--force", "web", *names)
    if len(ids) != 3 or len(cards) != 3:
        raise Failure("the copies are not different: %s, %s" % (ids, cards))
    with open(disk, "rb") as file:
        if not file.read(16).startswith(b"of-the-base\n"):
            raise Failure("a copy wrote to the base's disk")


@case("snapshots that copy no disk: the machine goes on in overlays, memory and disk of each agree, and a chain is listed, checked and committed")
def snapshot_overlays(test):
    environment = dict(os.environ, XDG_RUNTIME_DIR=test.folder)

    def doppel(*words, status=0):
        done = subprocess.run([DOPPEL, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True)
        if done.returncode != status:
            raise Failure("doppel %s: status %d, %s" % (" ".join(words), done.returncode, done.stdout))
        return done.stdout

    def write(console, word):
        say(console, "word=%s; echo $word-on-the-disk | dd of=/dev/vda conv=fsync 2>/dev/null; echo $word-$((1 + 1))" % word, word + "-2")

    look = "echo 3 >/proc/sys/vm/drop_caches; echo $word-$(head -n 1 /dev/vda)"
    disk, overlays, kept = test.disk(mebibytes=16), test.path("overlays"), [test.path("kept%d" % i) for i in (1, 2)]
    doppel("run", "--name", "web", "--detach", "--engine", "dbt", "--memory", "512M", "--disk", disk,
           "--kernel", asset("kernel", "cloud"), "--initrd", asset("initramfs", "cloud"), "--append", "console=ttyS0 quiet")
    try:
        with test.machine(console="web", environment=environment) as console:
            console.expect(r"^doppel:/# ")
            write(console, "one")
            doppel("snapshot", "web", kept[0], "--disks", overlays)
            write(console, "two")
            doppel("snapshot", "web", kept[1], "--disks", overlays, "--parent", kept[0])
            write(console, "three")
            for word, path in zip(("one", "two"), kept):
                disks = path + "-disks"
                with test.machine("--disks", disks, restore=path) as machine:
                    say(machine, look, "%s-%s-on-the-disk" % (word, word))
                    write(machine, "other")
            say(console, look, "three-three-on-the-disk")
    finally:
        doppel("stop", "--force", "web")
    top = os.path.join(overlays, "disk-0-2.qcow2")
    chain = re.findall(r"(?m)^file +(.*)$", doppel("disk", "info", "--backing", top))
    if chain != [top, os.path.join(overlays, "disk-0.qcow2"), os.path.realpath(disk)]:
        raise Failure("the chain is %s" % chain)
    for path in chain[:2]:
        doppel("disk", "check", path)
    for path in kept:
        doppel("snapshot", "check", path)
    for path in chain[:2]:
        doppel("disk", "commit", "--backing", path)
    with open(disk, "rb") as file:
        if not file.read(32).startswith(b"three-on-the-disk\n"):
            raise Failure("what was committed is not there")
    if "changed after the snapshot" not in doppel("restore", kept[0], "--disks", kept[0] + "-disks", status=exit_status("USAGE")):
        raise Failure("a snapshot whose disk was changed was not refused for that")


@case("what changed is known exactly while two processors run programs on the translator: a differential snapshot and a full one of the "
      "same moment hold the same memory", cpus=2)
def snapshot_dirty(test):
    socket = test.path("monitor")
    with test.linux("cloud", "--engine", "dbt", "--monitor", "socket:" + socket, cpus=2, append="quiet") as machine:
        machine.expect(r"^doppel:/# ")
        say(machine, "work() { while :; do seq 1 3000 | sort -r | md5sum >/tmp/sum$1; done; }; work 1 & work 2 & echo begun-$((1 + 1))",
            "begun-2")
        parent = test.path("base")
        take(machine, socket, parent)
        for i in range(4):
            machine.read(0.5)
            changed, full = test.path("changed%d" % i), test.path("full%d" % i)
            with Monitor(socket) as monitor:
                monitor.ask("stop")
                monitor.snapshot(changed, parent)
                monitor.snapshot(full)
                monitor.ask("continue")
            found = subprocess.run([DOPPEL, "snapshot", "diff", changed, full], stdout=subprocess.PIPE, text=True, check=False).stdout
            if re.search("^(memory|vcpu)", found, re.MULTILINE):
                raise Failure("they differ:\n" + found)
            parent = full

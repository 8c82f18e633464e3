"""Formats of disks, and what a power cut leaves of them, seen by a guest."""
import http.client
import json
import os
import random
import re
import socket as socket_module
import sqlite3
import struct
import subprocess
import sys
import time

from cases import asset, case
from machine import DOPPEL, ROOT, Failure, Monitor, exit_status

sys.path.insert(0, os.path.join(ROOT, "bench"))
import guests  # noqa: E402
import workloads  # noqa: E402

CUTS = 150          # of one recorded run
SQLITE_CUTS = 1500  # of two
SQLITE_SECONDS = 300
PIECE = 4096
FILES = 60          # what test_disk_sync of tools/guest/init writes


def run(*words, status=0):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != status:
        raise Failure("%s: status %d\n%s" % (" ".join(words), done.returncode, done.stdout))
    return done.stdout


def disk_tool(*words):
    return run(DOPPEL, "disk", *words)


def contents(path):
    with open(path, "rb") as file:
        return file.read()


@case("a guest makes and uses a file system on a qcow2 overlay, whose base stays as it was; an ephemeral disk stays as it was as a whole")
def disk_formats(test):
    base, overlay, raw = test.disk("base.img"), test.path("overlay.qcow2"), test.path("overlay.img")
    before = contents(base)
    disk_tool("create", "--base", base, overlay)
    for option, changes in ((overlay + ",backing=on", True), (overlay + ",backing=on,ephemeral", False)):
        image = contents(overlay)
        with test.linux("cloud", "--disk", option, append="doppel.test=filesystem") as machine:
            machine.result("filesystem")
            machine.end(exit_status("DONE"))
        if contents(base) != before or (contents(overlay) != image) != changes:
            raise Failure("%s: the wrong files have changed" % option)
    run("qemu-img", "check", "-q", overlay)
    disk_tool("convert", "--backing", overlay, raw)
    run("e2fsck", "-fn", raw)


class Record:
    """What was written to an image, by tests/disk/record.c."""

    def __init__(self, before, log):
        self.before, self.events = before, []
        data, at = contents(log), 0
        while at < len(data):
            offset, size = struct.unpack_from("<QQ", data, at)
            self.events.append((offset, data[at + 16:at + 16 + size]))
            at += 16 + size

    def replay(self, path, cut, rng):
        """
        All that lies before the last barrier, and of the rest up to the cut all or any part, in pieces of 4 KiB: ext4's superblock
        does not survive being torn between two sectors of 512 bytes. (tests/disk/crash.c tears there.)
        """
        barrier = max([i + 1 for i in range(cut) if not self.events[i][1]], default=0)
        partly = rng.random() < 0.7
        with open(path, "wb") as file:
            file.write(self.before)
            for number, (offset, data) in enumerate(self.events[:cut]):
                if number < barrier or not partly:
                    file.seek(offset)
                    file.write(data)
                    continue
                at = 0
                while at < len(data):
                    size = PIECE - (offset + at) % PIECE
                    if rng.random() < 0.5:
                        file.seek(offset + at)
                        file.write(data[at:at + size])
                    at += size


def repair_image(image, raw):
    """Gives back what a qcow2 image lost room for in a power cut, which is all that may be wrong with it, and makes a raw one of it."""
    disk_tool("check", "--repair", image)
    run("qemu-img", "check", "-q", image)
    if os.path.exists(raw):
        os.unlink(raw)
    disk_tool("convert", image, raw)


def check_file_system(raw):
    """ext4's journal puts right what a power cut left; then nothing is wrong."""
    subprocess.run(["e2fsck", "-p", raw], stdout=subprocess.DEVNULL, check=False)
    run("e2fsck", "-fn", raw)


def check_files(raw):
    """Each file is whole if a later one is there: it was on stable storage before that was begun."""
    names = run("debugfs", "-R", "ls -p /", raw)
    present = [number for number in range(1, FILES + 1) if "/f%d/" % number in names]
    if present != list(range(1, len(present) + 1)):
        raise Failure("files are missing in between: %s" % present)
    for number in present[:-1]:
        text = subprocess.run(["debugfs", "-R", "cat /f%d" % number, raw], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
        if text != b"".join(b"%d\n" % n for n in range(number, number + 4001)):
            raise Failure("file %d of %d is not what was written" % (number, len(present)))
    return len(present)


@case("a guest's ext4 on qcow2 survives power cuts at any write: clean for qemu-img, put right by its journal, all that was synced is there",
      long=True)
def disk_power_cuts(test):
    ext4, image, log = test.path("ext4.img"), test.path("disk.qcow2"), test.path("record")
    cut_image, raw = test.path("cut.qcow2"), test.path("cut.img")
    with open(ext4, "wb") as file:
        file.truncate(48 << 20)
    run("mke2fs", "-q", "-t", "ext4", ext4)
    disk_tool("convert", ext4, image)
    before, seen = contents(image), set()
    library = os.path.join(ROOT, "build", "tests", "disk", "libdisk_record.so")
    with test.linux("cloud", "--disk", image, append="doppel.test=disk_sync",
                    environment={**os.environ, "LD_PRELOAD": library, "DOPPEL_RECORD": image, "DOPPEL_RECORD_TO": log}) as machine:
        machine.result("disk_sync")
        machine.end(exit_status("DONE"))
    record, rng = Record(before, log), random.Random(1)
    for _ in range(CUTS):
        record.replay(cut_image, rng.randrange(len(record.events) + 1), rng)
        leaks = subprocess.run(["qemu-img", "check", "-q", cut_image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
        if leaks not in (0, 3):
            raise Failure("qemu-img check: status %d" % leaks)
        repair_image(cut_image, raw)
        check_file_system(raw)
        seen.add(check_files(raw))
    if len(seen) < CUTS // 10:
        raise Failure("the cuts were no good: only %d different states" % len(seen))


COMMITS = 60


def payload(number):
    return str(number) * (1 + number * 7 % 400)


def commits():
    """
    Row after row is committed to one database and then to the other, each on stable storage before the next begins: so after a cut the first has as many rows
    as the second, or one more. EXTRA: a journal that was deleted stays deleted.
    """
    lines = []
    for name, journal in (("a", "wal"), ("b", "delete")):
        lines += ["ATTACH '/tmp/m/%s.db' AS %s;" % (name, name), "PRAGMA %s.journal_mode=%s;" % (name, journal), "PRAGMA %s.synchronous=EXTRA;" % name,
                  "CREATE TABLE %s.t (n INTEGER PRIMARY KEY, x TEXT);" % name, "CREATE INDEX %s.i ON t (x);" % name]
    for number in range(1, COMMITS + 1):
        value = "(%d, replace(hex(zeroblob(%d)), '00', '%d'))" % (number, 1 + number * 7 % 400, number)
        lines += ["INSERT INTO %s.t VALUES %s;" % (name, value) for name in "ab"]
    return "\n".join(lines) + "\n"


def record_commits(test, image, options, log):
    """The guest makes its commits on the image; what is written goes to the log."""
    system, folder, stage_folder = asset("system", "bench", optional=True), test.path("content"), test.path("stage")
    os.mkdir(folder)
    os.mkdir(stage_folder)
    with open(os.path.join(folder, "commits.sql"), "w", encoding="ascii") as file:
        file.write(commits())
    jobs = [workloads.Job("commits", "mkdir /tmp/m && mount -t ext4 $DISK /tmp/m && sqlite3 -bail <commits.sql && umount /tmp/m")]
    stage = guests.Stage(system, folder, stage_folder, jobs, {"JOB_SECONDS": SQLITE_SECONDS})
    library = os.path.join(ROOT, "build", "tests", "disk", "libdisk_record.so")
    console = guests.Console(["env", "LD_PRELOAD=" + library, "DOPPEL_RECORD=" + image, "DOPPEL_RECORD_TO=" + log,
                              *guests.guest_command("dbt", stage, 1, image + options, None, memory="256M")], test.log, SQLITE_SECONDS)
    try:
        ends = [guests.END.match(line) for _, line in console.lines() if line.startswith("BENCH-END")]
    finally:
        console.close()
    if len(ends) != 1 or ends[0].group(2) != "0":
        raise Failure("the commits failed:\n" + "\n".join(console.tail))


def rows(test, raw, name):
    """How many rows there are, all right; 0 also where the table is not there yet."""
    paths = {suffix: test.path("cut.db" + suffix) for suffix in ("", "-wal", "-journal")}
    for suffix, path in {**paths, "-shm": test.path("cut.db-shm")}.items():
        if os.path.exists(path):
            os.unlink(path)
        if suffix in paths and "/%s.db%s/" % (name, suffix) in run("debugfs", "-R", "ls -p /", raw):
            run("debugfs", "-R", "dump /%s.db%s %s" % (name, suffix, path), raw)
    if not os.path.exists(paths[""]):
        return 0
    database = sqlite3.connect(paths[""])
    try:
        if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            raise Failure("%s.db: the integrity check fails" % name)
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name='t'").fetchone():
            return 0
        found = database.execute("SELECT n, x FROM t ORDER BY n").fetchall()
    finally:
        database.close()
    if found != [(number, payload(number)) for number in range(1, len(found) + 1)]:
        raise Failure("%s.db: rows are missing or wrong" % name)
    return len(found)


def sqlite_cuts(test, form, cuts):
    ext4, log, cut_image, raw = test.path("ext4.img"), test.path("record"), test.path("cut." + form), test.path("cut.img")
    with open(ext4, "wb") as file:
        file.truncate(24 << 20)
    run("mke2fs", "-q", "-t", "ext4", ext4)
    image = test.path("disk.qcow2") if form == "qcow2" else ext4
    if form == "qcow2":
        disk_tool("convert", ext4, image)
    before, seen = contents(image), set()
    record_commits(test, image, ",engine=threads" if form == "img" else "", log)
    record, rng = Record(before, log), random.Random(2)
    for _ in range(cuts):
        record.replay(cut_image, rng.randrange(len(record.events) + 1), rng)
        if form == "qcow2":
            repair_image(cut_image, raw)
        check_file_system(raw)
        a, b = rows(test, raw, "a"), rows(test, raw, "b")
        if a - b not in (0, 1):
            raise Failure("%d rows in the first database, %d in the second: commits are lost" % (a, b))
        seen.add((a, b))
    if len(seen) < min(cuts, COMMITS) // 3:
        raise Failure("the cuts were no good: only %d different states" % len(seen))


@case("SQLite in a guest, with a write-ahead log and with a journal, on raw: after power cuts both databases are whole and have all that was committed")
def disk_sqlite_raw(test):
    sqlite_cuts(test, "img", 20)


@case("SQLite in a guest as before, on qcow2: the image is clean for qemu-img, too")
def disk_sqlite_qcow2(test):
    sqlite_cuts(test, "qcow2", 20)


@case("SQLite in a guest: 750 power cuts on raw", long=True)
def disk_sqlite_raw_long(test):
    sqlite_cuts(test, "img", SQLITE_CUTS // 2)


@case("SQLite in a guest: 750 power cuts on qcow2", long=True)
def disk_sqlite_qcow2_long(test):
    sqlite_cuts(test, "qcow2", SQLITE_CUTS // 2)


class Daemon:
    """qemu-storage-daemon, which offers a raw image as a vhost-user block device."""

    def __init__(self, image, socket):
        self.socket = socket
        if os.path.exists(socket):
            os.unlink(socket)
        self.process = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=file,discard=unmap,filename=" + image,
             "--blockdev", "driver=raw,node-name=disk,file=file",
             "--export", "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=" + socket])
        limit = time.monotonic() + 30
        while not os.path.exists(socket):
            if time.monotonic() > limit:
                raise Failure("qemu-storage-daemon does not begin")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@case("a disk in another process (vhost-user, qemu-storage-daemon): the guest makes and uses a file system on it; the process dies "
      "under its writes and comes back, and nothing is lost")
def disk_vhost_user(test):
    image, socket = test.disk(mebibytes=64), test.path("socket")
    with Daemon(image, socket), test.linux("cloud", "--disk", "vhost-user:" + socket, append="doppel.test=disk,filesystem") as machine:
        machine.result("disk")
        machine.result("filesystem")
        machine.end(exit_status("DONE"))
    run("e2fsck", "-fn", image)
    with Daemon(image, socket) as daemon, test.linux("cloud", "--disk", "vhost-user:" + socket, append="quiet") as machine:
        machine.expect(r"^doppel:/# ")
        machine.send("n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); seq $n $((n + 40000)) | head -c 131072 >/tmp/block; echo W$n-$((1 + 1)); "
                     "dd if=/tmp/block of=/dev/vda bs=128k seek=$((n % 25)) conv=fsync 2>/dev/null || touch /tmp/failed; "
                     "md5sum </tmp/block >/tmp/sum$((n % 25)); done &\n")
        for kills in range(3):
            machine.expect(r"^W%d-2$" % (5 + 4 * kills))
            daemon.process.kill()
            daemon.process.wait()
            machine.read(0.5)
            daemon = Daemon(image, socket)
        machine.expect(r"^W20-2$")
        machine.send("touch /tmp/stop; wait; echo 3 >/proc/sys/vm/drop_caches; bad=0; for i in $(seq 1 20); do "
                     "[ \"$(dd if=/dev/vda bs=128k skip=$i count=1 2>/dev/null | md5sum)\" = \"$(cat /tmp/sum$i)\" ] || bad=$((bad + 1)); done; "
                     "echo CHECK bad-$bad failed-$(ls /tmp/failed 2>/dev/null | wc -l)\n")
        found = machine.expect(r"^CHECK bad-(\d+) failed-(\d+)$")
        if found[0] != "CHECK bad-0 failed-0":
            raise Failure(found[0])
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))
        daemon.process.kill()
        daemon.process.wait()


class Api(http.client.HTTPConnection):
    """The control socket of a machine."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket_module.socket(socket_module.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def put(self, what, body, status):
        self.request("PUT", "/api/v1/" + what, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        if answer.status != status:
            raise Failure("%s %s: status %d, %s" % (what, body, answer.status, text))
        return json.loads(text) if text else None

    def names(self, kind):
        self.request("GET", "/api/v1/vm.info")
        return [device["id"] for device in json.loads(self.getresponse().read())["config"].get(kind, [])]

    def await_names(self, kind, names):
        limit = time.monotonic() + 60
        while self.names(kind) != names:
            if time.monotonic() > limit:
                raise Failure("%s are %s and not %s" % (kind, self.names(kind), names))
            time.sleep(0.05)


def devices_of(machine, names):
    """Waits until the guest has just these disks and cards."""
    machine.send("while [ \"$(cd /sys/class/block; echo vd*) $(cd /sys/class/net; echo eth*)\" != '%s' ]; do sleep 0.1; done; echo there-$((1 + 1))\n" % names)
    machine.expect(r"^there-2$")


@case("disks and network cards come and go while the guest runs; what was written is in the image; a snapshot of the machine has "
      "what came and lacks what went", cpus=2)
def hotplug(test):
    first, second, api_path, monitor, kept = test.disk("first.img"), test.disk("second.img"), test.path("api"), test.path("monitor"), test.path("kept")
    with test.linux("cloud", "--disk", first, "--net", "user", "--api-socket", api_path, "--monitor", "socket:" + monitor, cpus=2,
                    append="quiet") as machine:
        machine.expect(r"^doppel:/# ")
        api = Api(api_path)
        for turn in range(3):
            place = api.put("vm.add-disk", {"path": second, "id": "data"}, 200)
            card = api.put("vm.add-net", {"mac": "52:54:00:00:00:77"}, 200)
            api.put("vm.add-disk", {"path": second, "id": "data"}, 400)
            if place["id"] != "data" or not re.match(r"^0000:00:[0-9a-f]{2}\.0$", place["bdf"]):
                raise Failure("the disk is at %s" % place)
            devices_of(machine, "vda vdb eth0 eth1")
            machine.send("cat /sys/class/net/eth1/address; seq %d 100000 | dd of=/dev/vdb bs=64k conv=fsync 2>/dev/null; echo wrote-$((1 + 1))\n" % turn)
            machine.expect(r"^52:54:00:00:00:77$")
            machine.expect(r"^wrote-2$")
            if turn == 2:
                break
            api.put("vm.remove-device", {"id": "data"}, 204)
            api.put("vm.remove-device", {"id": card["id"]}, 204)
            devices_of(machine, "vda eth0")
            api.await_names("disks", ["_disk0"])
            api.await_names("net", ["_net0"])
            if not contents(second).startswith(b"%d\n%d\n" % (turn, turn + 1)):
                raise Failure("what was written is not in the image")
        api.put("vm.remove-device", {"id": "nobody"}, 400)
        api.put("vm.resize", {"desired_vcpus": 4}, 501)
        api.put("vm.remove-device", {"id": "_disk0"}, 204)
        api.await_names("disks", ["data"])
        devices_of(machine, "vdb eth0 eth1")
        with Monitor(monitor) as session:
            session.snapshot(kept)
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))
    disks = test.path("disks")
    os.mkdir(disks)
    with test.machine("--disks", disks, "--api-socket", api_path, restore=kept) as machine:
        devices_of(machine, "vdb eth0 eth1")
        api = Api(api_path)
        machine.send("echo 3 >/proc/sys/vm/drop_caches; head -n 2 /dev/vdb | tr '\\n' -; echo read-$((1 + 1))\n")
        machine.expect(r"^2-3-read-2$")
        api.put("vm.add-disk", {"path": first, "readonly": True}, 200)
        devices_of(machine, "vda vdb eth0 eth1")
        api.put("vm.remove-device", {"id": "data"}, 204)
        devices_of(machine, "vda eth0 eth1")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


def data_cd(test, name):
    """A CD with a file that holds the name."""
    tree, path = test.path("tree-" + name), test.path(name + ".iso")
    os.mkdir(tree)
    with open(os.path.join(tree, "name"), "w", encoding="utf-8") as file:
        file.write("CD-%s\n" % name)
    run("xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", path, tree)
    return path


@case("a guest mounts the CDs that are put into its drive while it runs; a mounted one is only taken by force, and the guest is told")
def cd_change(test):
    first, second, monitor = data_cd(test, "first"), data_cd(test, "second"), test.path("monitor")
    with test.linux("amd64", "--cdrom", "none", "--monitor", "socket:" + monitor, append="quiet doppel.more=yes") as machine:
        machine.expect(r"^doppel:/# ")
        with Monitor(monitor) as session:
            def media(words, answer):
                text = session.ask("media " + words)
                if answer not in text:
                    raise Failure("media %s: %s" % (words, text))

            def mount(answer):
                machine.command_line("mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null; cat /mnt/name || echo no-$((1 + 1))", answer)
            machine.command_line("until [ -b /dev/sr0 ]; do sleep 1; done; echo drive-$((1 + 1))", "^drive-2$")
            mount("^no-2$")
            media(first, "done")
            mount("^CD-first$")
            media(second, "locked")
            media("none", "locked")
            machine.command_line("umount /mnt && echo out-$((1 + 1))", "^out-2$")
            media(second, "done")
            mount("^CD-second$")
            media("none force", "done")
            machine.command_line("dd if=/dev/sr0 of=/dev/null bs=2048 skip=16 count=1 iflag=direct 2>/dev/null || echo gone-$((1 + 1))", "^gone-2$")
            machine.command_line("umount /mnt && echo out-$((2 + 2))", "^out-4$")
            media("_disk0 " + first, "done")
            mount("^CD-first$")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))

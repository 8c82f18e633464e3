"""Boots of real kernels. Each test is named after what it proves; `long` ones run with --long only."""
import collections
import contextlib
import functools
import hashlib
import http.server
import os
import random
import queue
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

from machine import BOOT_SECONDS, ROOT, Failure, Machine, Monitor, Skip, exit_status

Check = collections.namedtuple("Check", "name verdict detail")
Case = collections.namedtuple("Case", "name proves long cpus tries body")
ALL = []


def case(proves, long=False, cpus=1, tries=1):
    """tries: 2 for what is known to go wrong now and then, and not yet understood; a first try that failed is shown."""
    def add(body):
        ALL.append(Case(body.__name__, proves, long, cpus, tries, body))
        return body
    return add


@functools.lru_cache(maxsize=None)
def asset_lookup(*words):
    return subprocess.run([os.path.join(ROOT, "tools", "asset"), *words], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)


def asset(*words, optional=False):
    """The path of a guest asset. One that this machine may well be unable to make is optional: then the test is skipped."""
    made = asset_lookup(*words)
    if made.returncode == 0:
        return made.stdout.strip()
    why = "tools/asset %s: %s" % (" ".join(words), made.stderr.strip().splitlines()[-1:])
    raise Skip(why) if optional else Failure(why)


class Test:
    """What a test body works with."""

    def __init__(self, name, log, folder, checks):
        self.name, self.log, self.folder, self.checks = name, log, folder, checks

    def check(self, name, verdict, detail):
        """Adds a check that counts by itself: ok, FAIL or skip, and why."""
        self.checks.append(Check(name, verdict, detail))

    def path(self, name):
        return os.path.join(self.folder, name)

    def disk(self, name="disk.img", mebibytes=16, seed=1):
        """A raw image with known random contents in its first mebibyte."""
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(random.Random(seed).randbytes(1 << 20))
            file.truncate(mebibytes << 20)
        return path

    def machine(self, *options, **how):
        return Machine(self.log, *options, **how)

    def linux(self, kernel, *options, append="", optional=False, memory="512M", cpus=1, **how):
        """A machine with one of the kernels and the test guest that goes with it."""
        return self.machine("--memory", memory, "--cpus", cpus, "--no-reboot",
                            "--kernel", asset("kernel", kernel, optional=optional),
                            "--initrd", asset("initramfs", kernel, optional=optional),
                            "--append", "console=ttyS0 panic=-1 " + append, *options, **how)


def to_a_shell(test, kernel, machine_type, cpus=1, optional=False, options=()):
    """Boots to the guest's shell, types commands, and powers off."""
    with test.linux(kernel, *options, cpus=cpus, optional=optional) as machine:
        ready = machine.expect(r"^DOPPEL-READY (\S+) (\S+) (\d+) processors")
        if (ready[1], int(ready[3])) != (machine_type, cpus):
            raise Failure("the guest is %s with %s processors" % (ready[1], ready[3]))
        machine.expect(r"^doppel:/# ")
        machine.command_line("echo $((6 * 7))-$(uname -m)", "^42-%s$" % machine_type)
        machine.command_line("grep -c ^processor /proc/cpuinfo", "^%d$" % cpus)
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("the cloud kernel boots on one processor to a shell that takes commands; poweroff ends with status 0")
def cloud_shell_1(test):
    to_a_shell(test, "cloud", "x86_64")


@case("the cloud kernel starts a second processor", cpus=2)
def cloud_shell_2(test):
    to_a_shell(test, "cloud", "x86_64", cpus=2)


@case("Debian's stock kernel boots on one processor to a shell")
def amd64_shell_1(test):
    to_a_shell(test, "amd64", "x86_64")


@case("Debian's stock kernel boots on two processors to a shell", cpus=2)
def amd64_shell_2(test):
    to_a_shell(test, "amd64", "x86_64", cpus=2)


@case("a 32-bit PAE kernel boots to a shell")
def i386_pae_shell_1(test):
    to_a_shell(test, "686-pae", "i686", optional=True)


@case("a 32-bit PAE kernel boots on two processors to a shell", long=True, cpus=2)
def i386_pae_shell_2(test):
    to_a_shell(test, "686-pae", "i686", cpus=2, optional=True)


@case("a 32-bit kernel without PAE boots to a shell")
def i386_shell_1(test):
    to_a_shell(test, "686", "i686", optional=True)


@case("a 32-bit kernel without PAE boots on two processors to a shell", long=True, cpus=2)
def i386_shell_2(test):
    to_a_shell(test, "686", "i686", cpus=2, optional=True)


@case("the Debian installer's 32-bit kernel boots with the installer's own initrd to a shell")
def installer_shell(test):
    with test.machine("--memory", "512M", "--no-reboot", "--kernel", asset("kernel", "di"),
                      "--initrd", asset("initrd", "di"),
                      "--append", "console=ttyS0 panic=-1 rdinit=/bin/sh") as machine:
        machine.expect(r"^.*# ")
        machine.command_line("echo $((6 * 7))-$(uname -m)", "^42-i686$")
        machine.send("mount -t proc proc /proc; mount -t sysfs sys /sys; poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("the cloud kernel's own ELF image starts through its PVH entry")
def cloud_pvh(test):
    to_a_shell(test, "cloud", "x86_64", options=("--boot", "pvh"))


@case("processors, memory, clock, entropy, disk and file system work in the guest", cpus=2)
def devices(test):
    names = "cpu smp memory clock entropy disk filesystem".split()
    with test.linux("cloud", "--disk", test.disk(mebibytes=64) + ",serial=DOPPEL-1", cpus=2,
                    append="doppel.test=%s doppel.cpus=2 doppel.mem=400 doppel.serial=DOPPEL-1 doppel.now=%d"
                    % (",".join(names), time.time())) as machine:
        for name in names:
            machine.result(name)
        machine.end(exit_status("DONE"))


def model(test, name, flags="", noflags=""):
    """Boots on a processor model; the guest must see the flags, not see the others, and reckon as on any other."""
    with test.linux("cloud", "--cpu", name,
                    append="doppel.test=cpu,smp doppel.flags=%s doppel.noflags=%s" % (flags, noflags)) as machine:
        machine.result("cpu")
        machine.result("smp")
        machine.end(exit_status("DONE"))


def host_has(flag):
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return re.search(r"^flags.*\b%s\b" % flag, file.read(), re.MULTILINE)


@case("processor models decide what the guest sees and uses: x86-64-v1 has no SSE4 and no AVX", long=True)
def model_v1(test):
    model(test, "x86-64-v1", "lm,sse2", "ssse3,sse4_1,popcnt,avx,avx2,bmi2,xsave")


@case("processor models: a host with AVX-512 offers it under x86-64-v4", long=True)
def model_v4(test):
    if not host_has("avx512vl"):
        raise Skip("this host has no AVX-512")
    model(test, "x86-64-v4", "avx2,avx512f,avx512vl,avx512dq")


@case("processor models: the whole of the host's processor", long=True)
def model_host(test):
    model(test, "host", "lm,sse2,hypervisor")


@case("the kernel runs on 5-level page tables where the model has them", long=True)
def model_la57(test):
    model(test, "x86-64-v3,+la57", "la57")


@case("the kernel runs with the 8259 pair and the 8254 alone, without any APIC", long=True)
def without_apic(test):
    with test.linux("cloud", append="noapic nolapic doppel.test=clock") as machine:
        machine.result("clock")
        machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("without I/O APIC and MSI, PCI interrupts reach the 8259s through the router, as the DSDT's links say")
def pci_interrupts_to_the_8259(test):
    with test.linux("cloud", "--disk", test.disk(), append="noapic pci=nomsi") as machine:
        machine.expect(r"^doppel:/# ")
        machine.command_line("head -c 65536 /dev/vda | wc -c", "^65536$")
        machine.expect(r"^doppel:/# ")
        machine.command_line("grep -c 'XT-PIC.*virtio' /proc/interrupts", "^[1-9]")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@contextlib.contextmanager
def web_server(contents):
    """An HTTP server on the host's loopback that gives one file; yields its port."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):      # a machine may end while it fetches
                self.wfile.write(contents)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@case("the guest gets an address by DHCP and fetches a file whole from a server on the host's loopback")
def network(test):
    contents = random.Random(2).randbytes(2_000_000)
    with web_server(contents) as port, test.linux(
            "cloud", "--net", "user",
            append="doppel.test=net doppel.url=http://10.0.2.2:%d/file doppel.hash=%s"
            % (port, hashlib.sha256(contents).hexdigest())) as machine:
        machine.result("net")
        machine.end(exit_status("DONE"))


@contextlib.contextmanager
def sink():
    """A server that takes what one client sends; yields its port and a queue that all of it comes to."""
    got = queue.Queue()

    def take(server):
        connection, _ = server.accept()
        with connection:
            got.put(b"".join(iter(lambda: connection.recv(65536), b"")))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, args=(server,), daemon=True).start()
        yield server.getsockname()[1], got


@case("Linux's own e1000 driver gets an address, fetches and sends files whole, with checksums and segmentation left to the card")
def network_e1000(test):
    contents = random.Random(3).randbytes(2_000_000)
    with web_server(contents) as port, sink() as (sink_port, got), test.linux(
            "amd64", "--net", "user,model=e1000",
            append="doppel.more=yes doppel.test=net,net_send doppel.url=http://10.0.2.2:%d/file doppel.hash=%s doppel.sink=10.0.2.2:%d"
            % (port, hashlib.sha256(contents).hexdigest(), sink_port)) as machine:
        machine.result("net")
        machine.result("net_send")
        if got.get(timeout=60) != b"".join(b"%d\n" % n for n in range(1, 200001)):
            raise Failure("what the guest sent arrived otherwise")
        machine.end(exit_status("DONE"))


@case("a connection to a forwarded port of the host reaches a server in the guest")
def network_forward(test):
    port = random.Random().randrange(20000, 30000)
    with test.linux("cloud", "--net", "user,hostfwd=tcp:127.0.0.1:%d-:80" % port,
                    append="doppel.test=serve doppel.port=80") as machine:
        machine.expect("^DOPPEL-SERVING 80")
        for path, want in (("numbers", "".join("%d\n" % n for n in range(1, 1001))), ("cgi-bin/done", "served\n")):
            with urllib.request.urlopen("http://127.0.0.1:%d/%s" % (port, path), timeout=60) as answer:
                if answer.read().decode() != want:
                    raise Failure("the guest's answer for %s is wrong" % path)
        machine.result("serve")
        machine.end(exit_status("DONE"))


@case("what the guest writes to its disk is there after its reboot, and in the image after its end")
def disk_reboot(test):
    disk = test.disk()
    with test.machine("--memory", "512M", "--kernel", asset("kernel", "cloud"), "--initrd", asset("initramfs", "cloud"),
                      "--append", "console=ttyS0 panic=-1 doppel.test=disk_reboot", "--disk", disk) as machine:
        machine.result("disk_reboot")
        machine.expect("^DOPPEL-DONE reboot")
        machine.result("disk_reboot")
        machine.end(exit_status("DONE"))
    pattern = "".join("%d\n" % n for n in range(1, 200001)).encode()[:1_000_000]
    with open(disk, "rb") as file:
        image = file.read()
    if image[16384:16384 + len(pattern)] != pattern:
        raise Failure("the image does not hold what the guest wrote")


@case("a read-only disk refuses writes and its image stays as it was")
def disk_readonly(test):
    disk = test.disk()
    with open(disk, "rb") as file:
        before = file.read()
    with test.linux("cloud", "--disk", disk + ",ro", append="doppel.test=disk_readonly") as machine:
        machine.result("disk_readonly")
        machine.end(exit_status("DONE"))
    with open(disk, "rb") as file:
        if file.read() != before:
            raise Failure("the image has changed")


@case("a guest with 6 GiB, part of it above 4 GiB, boots and has it all")
def memory_6g(test):
    with test.linux("cloud", memory="6G", append="doppel.test=memory doppel.mem=5800") as machine:
        machine.result("memory")
        machine.end(exit_status("DONE"))


@case("two machines at once do not disturb each other, nor each other's disks", cpus=2)
def two_machines(test):
    disks = [test.disk("disk%d.img" % i) for i in range(2)]
    with contextlib.ExitStack() as stack:
        machines = [stack.enter_context(test.linux("cloud", "--disk", disk, append="doppel.test=busy,disk_write,disk_read"))
                    for disk in disks]
        for machine in machines:
            machine.result("busy")
            machine.result("disk_write")
            machine.result("disk_read")
        for machine in machines:
            machine.end(exit_status("DONE"))


@case("Debian 12 with systemd boots from a virtio disk to a login, and shuts down in order")
def debian_login(test):
    image = test.path("root.img")
    subprocess.run(["cp", "--sparse=always", asset("rootfs", optional=True), image], check=True)
    with test.linux("cloud", "--disk", image, "--net", "user", memory="1G",
                    append="root=/dev/vda systemd.show_status=yes") as machine:
        machine.expect(r"doppel-guest login: ", 2 * BOOT_SECONDS)
        machine.send("root\n")
        machine.expect(r"Password: ", 60)
        machine.send("doppel\n")
        machine.expect(r"root@doppel-guest:~# ", 120)
        machine.command_line("systemctl is-system-running --wait; systemctl --failed --no-legend --plain; echo end-$((6 * 7))",
                             r"^(running|degraded)\n(.*\n)*?end-42$", BOOT_SECONDS)
        machine.command_line("ip -4 -o address show scope global", r" 10\.0\.2\.15/24 ")
        machine.send("poweroff\n")
        machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("more memory in use than there is goes to swap on a virtio disk and comes back unchanged", long=True)
def memory_swap(test):
    with test.linux("cloud", "--disk", test.disk(mebibytes=512), memory="128M",
                    append="doppel.test=swap doppel.hog=192") as machine:
        machine.result("swap")
        machine.end(exit_status("DONE"))


@case("the kernel sees the board's address map, interrupts from I/O APIC, timer and MSI, and accessed bits that come back")
def address_map(test):
    names = "iomem interrupts accessed".split()
    with test.linux("cloud", append="doppel.test=" + ",".join(names)) as machine:
        for name in names:
            machine.result(name)
        machine.end(exit_status("DONE"))


def applets(test):
    """A folder with the test guest's own programs, for the host to run."""
    folder = test.path("bin")
    os.makedirs(folder)
    subprocess.run([shutil.which("busybox"), "--install", "-s", folder], check=True)
    return folder


@case("hashes, compression, floating point and sorting give the results that the host gives", long=True)
def same_results(test):
    here = subprocess.run([shutil.which("busybox"), "sh", "-c", ". %s; fidelity" % os.path.join(ROOT, "tools", "guest", "fidelity")],
                          stdout=subprocess.PIPE, text=True, check=True, env={"PATH": applets(test)})
    with test.linux("cloud", append="doppel.test=results") as machine:
        for line in here.stdout.splitlines():
            found = machine.expect(r"^DOPPEL-RESULT (.*)\n")[1]
            if found != line:
                raise Failure("the guest says %r, the host %r" % (found, line))
        machine.result("results")
        machine.end(exit_status("DONE"))


@case("the monitor translates a process's address to the page that the guest's own pagemap names")
def translate_pagemap(test):
    path = test.path("monitor")
    with test.linux("cloud", "--monitor", "socket:" + path, append="doppel.test=pagemap doppel.wait=20") as machine:
        found = machine.expect(r"^DOPPEL-PAGEMAP ([0-9a-f]+) ([0-9a-f]{8}) ([0-9a-f]{8})")
        address, frame = int(found[1], 16), int(found[3] + found[2], 16) & ((1 << 55) - 1)
        with Monitor(path) as monitor:
            for _ in range(20):
                monitor.ask("stop")
                text = monitor.ask("translate %#x" % address)
                monitor.ask("continue")
                translated = re.search(r"%016x -> ([0-9a-f]+)" % address, text)
                if translated:
                    break
                time.sleep(0.2)
        if not translated or int(translated[1], 16) != frame << 12:
            raise Failure("pagemap says %#x, the monitor %r" % (frame << 12, text))
        machine.result("pagemap")
        machine.end(exit_status("DONE"))

"""The program around the guest: ways to end, the terminal, consoles, bad input."""
import os
import re
import select
import signal
import socket
import subprocess
import time

from cases import asset, case
from machine import BOOT_SECONDS, DOPPEL, Failure, Skip, exit_status


def to_the_end(test, words, status):
    """Boots with these words for the guest, and --no-reboot; the run must end with the status."""
    with test.linux("cloud", append=words) as machine:
        machine.expect("^DOPPEL-READY")
        machine.end(exit_status(status), BOOT_SECONDS)


@case("a guest that reboots ends the run with the status for it, under --no-reboot")
def end_reboot(test):
    to_the_end(test, "doppel.test=cpu doppel.end=reboot", "REBOOT")


@case("a guest that reboots by a triple fault ends the run with the status for it, under --no-reboot")
def end_triple_fault(test):
    to_the_end(test, "reboot=triple doppel.test=cpu doppel.end=reboot", "TRIPLE_FAULT")


@case("a guest whose kernel panics reboots, and does not hang the run", long=True)
def end_panic(test):
    to_the_end(test, "panic=-1 sysrq_always_enabled doppel.test=cpu doppel.end=panic", "REBOOT")


@case("on a terminal the console is raw while the guest runs; Ctrl-A x ends it and the terminal is as before")
def terminal_escape(test):
    with test.linux("cloud", terminal=True) as machine:
        machine.expect("^DOPPEL-READY")
        machine.expect(r"^doppel:/# ")
        if not machine.raw_mode():
            raise Failure("the terminal is not in raw mode")
        machine.command_line("echo $((6 * 7))-fine", "^42-fine$")
        machine.expect(r"^doppel:/# ")          # BusyBox 1.35's shell may die of a SIGINT before it reads, on any machine
        machine.send("\x03")                    # Ctrl-C is the guest's
        machine.expect(r"^doppel:/# ")
        machine.command_line("echo $((7 * 7))-fine", "^49-fine$")
        machine.send("\x01x")
        machine.end(exit_status("SIGNAL") + signal.SIGINT)
        if machine.raw_mode():
            raise Failure("the terminal was left in raw mode")


@case("a signal ends the run with 128 and its number and leaves the terminal as it was")
def terminal_signal(test):
    with test.linux("cloud", terminal=True) as machine:
        machine.expect("Linux version")
        machine.process.send_signal(signal.SIGTERM)
        machine.end(exit_status("SIGNAL") + signal.SIGTERM)
        if machine.raw_mode():
            raise Failure("the terminal was left in raw mode")


@case("Ctrl-A c opens the monitor on the terminal; it shows, stops and steps the guest and gives the terminal back")
def terminal_monitor(test):
    with test.linux("cloud", terminal=True) as machine:
        machine.expect(r"^doppel:/# ")
        machine.send("\x01c")
        machine.expect(r"\(doppel\) ", 30)
        for line, answer in (("info cpus", r"^processor 0  apic id 0 .* 64-bit"), ("info registers", r"^cr0 8005003[0-9a-f]"),
                             ("translate rip", r"^level 1|^level 2"), ("info pci", r"^00:00\.0  8086:29c0"),
                             ("stop", r"^[0-9a-f]{16}  [0-9a-f]+ +\S"), ("step 5", r"^[0-9a-f]{16}  [0-9a-f]+ +\S"),
                             ("disassemble pc 3", r"^[0-9a-f]{16}  [0-9a-f]+ +\S"), ("continue", r"\(doppel\) ")):
            machine.send(line + "\r")
            machine.expect(answer, 30)
            if line != "continue":
                machine.expect(r"\(doppel\) ", 30)
        machine.send("\x01c")
        machine.command_line("echo $((6 * 7))-fine", "^42-fine$")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("a virtio console is the guest's console as well as the serial line is")
def virtio_console(test):
    output = test.path("console")
    with test.linux("cloud", "--console", "file:" + output, "--virtio-console", "stdio",
                    append="doppel.test=virtio_console") as machine:
        machine.expect("^DOPPEL-HVC hello", BOOT_SECONDS)
        machine.end(exit_status("DONE"))
    with open(output, encoding="utf-8", errors="replace") as file:
        if "DOPPEL-TEST virtio_console ok" not in file.read():
            raise Failure("the guest could not write to hvc0; its words are in %s" % output)


@case("a console on a pseudoterminal takes commands", long=True)
def console_pty(test):
    with test.linux("cloud", "--console", "pty") as machine:
        name = machine.expect(r"the console is (\S+)", 30)[1]
        line = os.open(name, os.O_RDWR | os.O_NOCTTY)
        try:
            text, limit, asked = "", time.monotonic() + BOOT_SECONDS, False
            while "42-fine" not in text:
                if time.monotonic() > limit:
                    raise Failure("no answer on the pseudoterminal; the last is %r" % text[-80:])
                if select.select([line], [], [], 1)[0]:
                    text += os.read(line, 65536).decode(errors="replace")
                if not asked and "doppel:/# " in text:
                    os.write(line, b"echo $((6 * 7))-fine\n")
                    asked = True
            os.write(line, b"poweroff -f\n")
            machine.end(exit_status("DONE"))
        finally:
            os.close(line)


@case("the monitor answers on a socket about a running guest: processors, counters, PCI functions, registers")
def monitor_socket(test):
    path = test.path("monitor")
    with test.linux("cloud", "--monitor", "socket:" + path, cpus=1) as machine:
        machine.expect(r"^doppel:/# ")
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(path)
            for question, answer in (("info counters instructions", rb"[0-9]{6,}\s+instructions"),
                                     ("info cpus", rb"\b0\b"), ("info pci", rb"1af4:1044"), ("info irq", rb"."),
                                     ("info registers", rb"(?i)rip")):
                line.sendall(question.encode() + b"\n")
                text = b""
                while not re.search(answer, text):
                    piece = line.recv(65536)
                    if not piece:
                        raise Failure("the monitor hung up on '%s' after %r" % (question, text[-200:]))
                    text += piece
        machine.command_line("echo $((6 * 7))-fine", "^42-fine$")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("Debian in the background: its console is logged, and `doppel stop` lets systemd power off in order", long=True)
def background_debian(test):
    image, name = test.path("root.img"), "boot-test-%d" % os.getpid()
    subprocess.run(["cp", "--sparse=always", asset("rootfs", optional=True), image], check=True)

    def doppel(*words, **how):
        return subprocess.run([DOPPEL, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True, **how).stdout

    doppel("run", "-d", "--name", name, "--engine", "dbt", "--memory", "1G", "--kernel", asset("kernel", "cloud"), "--initrd",
           asset("initramfs", "cloud"), "--disk", image, "--append", "console=ttyS0 panic=-1 root=/dev/vda", timeout=60)
    try:
        limit = time.monotonic() + BOOT_SECONDS
        while "doppel-guest login:" not in doppel("logs", name):
            if time.monotonic() > limit:
                raise Failure("no login; the last of the log is %r" % doppel("logs", name)[-200:])
            time.sleep(1)
        doppel("stop", "--time-out", "120", name, timeout=BOOT_SECONDS)
        if "Power down" not in doppel("logs", name) or "the guest powered off" not in doppel("ps"):
            raise Failure("the guest did not power off by itself")
    finally:
        doppel("rm", "--force", name)


def refused(test, words, *options):
    """The run is refused with status USAGE and one sentence that has the words in it; nothing was started."""
    done = subprocess.run([DOPPEL, "run", *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    with open(test.log, "a", encoding="utf-8") as log:
        log.write("$ doppel run %s\n%s" % (" ".join(options), done.stdout))
    if done.returncode != exit_status("USAGE"):
        raise Failure("'%s' ends with status %d, not %d" % (" ".join(options), done.returncode, exit_status("USAGE")))
    lines = done.stdout.strip().splitlines()
    if len(lines) != 1 or not all(word in lines[0] for word in words):
        raise Failure("'%s' is answered by %r; it should name %s" % (" ".join(options), lines, words))


@case("bad input is refused with one sentence that names it")
def bad_input(test):
    kernel = asset("kernel", "cloud")
    short, empty = test.path("short-kernel"), test.path("empty-kernel")
    with open(kernel, "rb") as whole, open(short, "wb") as part:
        part.write(whole.read(1_000_000))
    with open(empty, "wb"):
        pass
    refused(test, ["no-such-kernel"], "--kernel", "no-such-kernel")
    refused(test, ["short-kernel"], "--kernel", short)
    refused(test, ["empty-kernel"], "--kernel", empty)
    refused(test, ["no-such-initrd"], "--kernel", kernel, "--initrd", "no-such-initrd")
    refused(test, ["no-such-disk"], "--kernel", kernel, "--disk", "no-such-disk")
    refused(test, ["--memroy", "--memory"], "--memroy", "1G")
    refused(test, ["memory"], "--kernel", kernel, "--memory", "900T")
    refused(test, ["cpus"], "--kernel", kernel, "--cpus", "0")
    refused(test, ["nonsense"], "--kernel", kernel, "--engine", "nonsense")
    refused(test, ["nonsense"], "--kernel", kernel, "--net", "nonsense")
    refused(test, ["kvm", "--tlb"], "--kernel", kernel, "--engine", "kvm", "--tlb", "stale")
    refused(test, ["translations", "passwd"], "--kernel", kernel, "--translation-cache", "/etc/passwd")


@case("a disk image that another run has open for writing is refused")
def locked_disk(test):
    disk = test.disk()
    with test.linux("cloud", "--disk", disk, append="quiet") as machine:
        machine.expect("^DOPPEL-READY")
        refused(test, ["disk.img"], "--kernel", asset("kernel", "cloud"), "--disk", disk)
        machine.expect(r"^doppel:/# ")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("while Debian boots, each kind of privileged instruction that it uses is counted, and --counters shows them")
def trap_counters(test):
    used = ("cr_reads cr_writes dr_writes xsetbv msr_reads msr_writes cpuid rdtsc invlpg invpcid lgdt lidt lldt ltr segment_loads "
            "swapgs iret syscalls sysrets pushf popf cli sti in out").split()
    with test.linux("cloud", "--counters", append="quiet doppel.test=cpu") as machine:
        machine.result("cpu")
        machine.expect("^DOPPEL-DONE")
        machine.end(exit_status("DONE"), BOOT_SECONDS)
        counted = dict(re.findall(r"^trap_(\w+) +(\d+)  ", machine.seen, re.MULTILINE))
    silent = [name for name in used if int(counted.get(name, 0)) == 0]
    if silent:
        raise Failure("nothing was counted for %s" % ", ".join(silent))


@case("Multiboot kernels, 32- and 64-bit ELF, get their command line and module, and end the run with a code of their own")
def multiboot(test):
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "multiboot.S")
    kernel, wide, module = test.path("kernel32"), test.path("kernel64"), test.path("module")
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x200000,--build-id=none,-z,noexecstack",
                    source, "-o", kernel], check=True)
    subprocess.run(["objcopy", "-O", "elf64-x86-64", kernel, wide], check=True, stderr=subprocess.DEVNULL)
    with open(module, "w", encoding="utf-8") as file:
        file.write("contents of the module\n")
    for path in (kernel, wide):
        done = subprocess.run([DOPPEL, "run", "--memory", "16M", "--console", "none", "--debug-console", "stdio", "--debug-exit",
                               "--kernel", path, "--initrd", module + " x=1", "--append", "one two"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
        want = "%s one two\n%s x=1\ncontents of the module\n" % (path, module)
        if done.stdout.replace("\r", "") != want or done.returncode != (0x21 << 1 | 1):
            raise Failure("%s ends with status %d and prints %r" % (path, done.returncode, done.stdout))


@case("a memory tester with two entry points, a bzImage without Linux in it, starts through both", long=True)
def memtest(test):
    for name in ("memtest86+x64.bin", "memtest86+ia32.bin"):
        path = "/boot/" + name
        if not os.path.exists(path):
            raise Skip("there is no %s (package memtest86+)" % path)
        with test.machine("--memory", "64M", "--kernel", path, "--append", "console=ttyS0,115200") as machine:
            machine.expect("Memtest86", BOOT_SECONDS)
            machine.process.send_signal(signal.SIGINT)
            machine.end(exit_status("SIGNAL") + signal.SIGINT)

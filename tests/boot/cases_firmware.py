"""What a person has on a disk, through firmware."""
import hashlib
import os
import shutil
import struct
import subprocess
import time
import zlib

from cases import asset, case
from machine import BOOT_SECONDS, DOPPEL, Failure, Monitor, exit_status

HERE = os.path.dirname(os.path.abspath(__file__))


def boot_sector(test, name="mbr.img", source="mbr.S"):
    """A disk with tests/boot/mbr.S, or another such program, on it."""
    path = test.path(name)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x7c00,--oformat=binary,--build-id=none",
                    os.path.join(HERE, source), "-o", path], check=True)
    os.truncate(path, 1 << 20)
    return path


@case("SeaBIOS boots a virtio disk's boot sector, which prints, reads and waits by BIOS calls, on both engines")
def bios_boot_sector(test):
    path = boot_sector(test)
    for engine in ("interp", "dbt"):
        with test.machine(path, "--engine", engine, "--display", "none") as machine:
            machine.expect(r"SeaBIOS \(version")
            machine.expect(r"^drive 80$")
            machine.expect(r"^the second sector was read$")
            machine.send("k")
            machine.expect(r"^key k$")
            machine.send("q")
            machine.end(exit_status("DONE"))


@case("a monitor in protected mode runs a virtual-8086 task on the BIOS's calls and clock, on both engines")
def bios_v86(test):
    path = boot_sector(test, "v86.img", "v86.S")
    for engine in ("interp", "dbt"):
        with test.machine(path, "--engine", engine, "--display", "none") as machine:
            machine.expect(r"^in real mode$")
            machine.expect(r"^in virtual-8086 mode$")
            machine.expect(r"^the clock ticked$")
            reflected = int(machine.expect(r"^back in real mode, reflected ([0-9A-F]{4})$")[1], 16)
            if reflected < 40:          # there are more characters than that
                raise Failure("only %d interrupts were reflected" % reflected)
            machine.end(exit_status("DONE"))


def cells(lines, width, height, cell=9):
    """The screen's characters, by rows, as what their cells of 9 (or 8) by 16 pixels look like. lines: three bytes a pixel."""
    return [["".join(lines[16 * row + y][3 * cell * column:3 * cell * (column + 1)].hex() for y in range(16))
             for column in range(width // cell)] for row in range(height // 16)]


def rows_of_screen(path):
    """The cells of a PNG picture."""
    with open(path, "rb") as file:
        data = file.read()
    width, height = struct.unpack(">II", data[16:24])
    packed, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        packed += data[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    raw, lines, before = zlib.decompress(packed), [], bytes(3 * width)
    for y in range(height):         # PNG §9.2: filters
        kind, line = raw[y * (3 * width + 1)], bytearray(raw[y * (3 * width + 1) + 1:(y + 1) * (3 * width + 1)])
        for i, value in enumerate(line):
            left, up, corner = line[i - 3] if i >= 3 else 0, before[i], before[i - 3] if i >= 3 else 0
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda near, guess=guess: abs(guess - near))
            line[i] = (value + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
        before = bytes(line)
        lines.append(before)
    return cells(lines, width, height)


def reads(row, text):
    """Whether the cells of the row repeat as the text's characters do, and are blank after it."""
    glyph, blank = {}, row[-1]
    same = all(glyph.setdefault(character, row[i]) == row[i] for i, character in enumerate(text))
    return same and len(set(glyph.values())) == len(glyph) and set(row[len(text):]) == {blank} and glyph.get(" ", blank) == blank


def shows(monitor, picture, text):
    """Whether a row of the screen is the text."""
    said = monitor.ask("screenshot " + picture)
    if not os.path.exists(picture):
        raise Failure("there is no picture; the monitor says %r" % said)
    return any(reads(row, text) for row in rows_of_screen(picture))


def sees(machine, monitor, picture, text):
    limit = time.monotonic() + BOOT_SECONDS
    while not shows(monitor, picture, text):
        if time.monotonic() > limit:
            raise Failure("the screen never shows %r" % text)
        machine.read(0.2)


def monitor_of(machine, path):
    """The session of a monitor that is there in a moment."""
    while not os.path.exists(path):
        if machine.process.poll() is not None:
            raise Failure("it ended before there was a monitor")
        machine.read(0.1)
    return Monitor(path)


@case("a boot sector's output by BIOS calls is seen on the screen, and a key that is sent arrives")
def bios_screen(test):
    socket, picture = test.path("monitor"), test.path("screen.png")
    with test.machine(boot_sector(test), "--monitor", "socket:" + socket) as machine:
        with monitor_of(machine, socket) as monitor:
            sees(machine, monitor, picture, "the second sector was read")
            monitor.ask("sendkey shift-g")
            sees(machine, monitor, picture, "key G")
            monitor.ask("sendkey q")
        machine.end(exit_status("DONE"))


@case("firmware that is not there, or is none, is told in one sentence")
def bios_missing(test):
    path = boot_sector(test)
    for name, text in (("/nowhere/bios.bin", "cannot open the firmware '/nowhere/bios.bin'"),
                       (os.path.join(HERE, "mbr.S"), "is no firmware image")):
        done = subprocess.run([DOPPEL, "run", path, "--firmware", name], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, timeout=60, check=False)
        if done.returncode != exit_status("USAGE") or text not in done.stderr or done.stderr.count("\n") != 1:
            raise Failure("status %d, and it says %r" % (done.returncode, done.stderr))


def rescue_iso(test):
    """A CD that grub-mkrescue makes, with the cloud kernel and the test guest on it."""
    tree, path = test.path("iso"), test.path("rescue.iso")
    os.makedirs(os.path.join(tree, "boot", "grub"))
    shutil.copy(asset("kernel", "cloud"), os.path.join(tree, "boot", "vmlinuz"))
    shutil.copy(asset("initramfs", "cloud"), os.path.join(tree, "boot", "initrd"))
    with open(os.path.join(tree, "boot", "grub", "grub.cfg"), "w", encoding="utf-8") as file:
        # UEFI's own console is on the serial line, too.
        file.write("if [ $grub_platform = pc ]; then\nserial --unit=0 --speed=115200\nterminal_input serial console\n"
                   "terminal_output serial console\nfi\ninsmod all_video\necho This is a CD.\n"
                   "linux /boot/vmlinuz console=ttyS0 panic=-1\ninitrd /boot/initrd\nboot\n")
    made = subprocess.run(["grub-mkrescue", "-o", path, tree], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    if made.returncode:
        raise Failure("grub-mkrescue: %s" % made.stdout.strip().splitlines()[-1:])
    return path


@case("an ISO image that grub-mkrescue made boots from the CD-ROM drive through SeaBIOS")
def bios_iso(test):
    with test.machine(rescue_iso(test), "--memory", "512M", "--engine", "dbt") as machine:
        machine.expect(r"This is a CD\.")
        machine.expect(r"^doppel:/# ")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("the same image boots through OVMF, which keeps its variables in a file")
def uefi_iso(test):
    variables = test.path("variables")
    with test.machine(rescue_iso(test), "--memory", "512M", "--engine", "dbt", "--firmware", "uefi",
                      "--uefi-variables", variables) as machine:
        machine.expect(r"This is a CD\.")
        machine.expect(r"^doppel:/# ")
        machine.command_line("ls -d /sys/firmware/efi", "^/sys/firmware/efi$")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))
    with open(variables, "rb") as file:
        kept = file.read()
    if b"B\0o\0o\0t\0O\0r\0d\0e\0r\0" not in kept:
        raise Failure("the file with UEFI's variables holds no BootOrder")


def uefi_disk(test):
    """A disk whose boot record has no code, with an EFI system partition that holds no more than a text."""
    path, fat, note = test.path("esp-only.img"), test.path("esp.img"), test.path("note.efi")
    with open(note, "w", encoding="utf-8") as file:
        file.write("not a program\n")
    for command in (["truncate", "-s", "34M", path], ["truncate", "-s", "32M", fat], ["mformat", "-i", fat, "-v", "ESP", "::"],
                    ["mcopy", "-i", fat, note, "::/NOTE.EFI"], ["dd", "if=" + fat, "of=" + path, "bs=1M", "seek=1", "conv=notrunc", "status=none"]):
        subprocess.run(command, check=True)
    subprocess.run(["sfdisk", "-q", path], input="label: dos\nstart=1MiB, size=32MiB, type=ef\n", text=True, check=True)
    return path


def to_the_shell(machine):
    machine.expect(r"UEFI Interactive Shell")
    machine.expect(r"to skip|to continue")
    machine.send("\x1b")
    machine.expect(r"Shell> ")


def shell_command(machine, command, answer):
    machine.send(command + "\r")
    match = machine.expect(answer, 60)
    machine.expect(r"Shell> ", 60)
    return match


@case("a disk that only UEFI could boot starts OVMF by itself; its shell maps memory and keeps variables and boot entries over a restart")
def uefi_shell(test):
    path = uefi_disk(test)
    variable = "setvar Doppel -guid 12345678-1234-1234-1234-123456789abc"
    with test.machine(path, "--memory", "256M", "--display", "none") as machine:
        to_the_shell(machine)
        shell_command(machine, "memmap", r"RT_Code\s*: ")
        shell_command(machine, variable + " -bs -rt -nv =0xD0770001", r"setvar")
        shell_command(machine, "bcfg boot add 5 fs0:\\note.efi Reminder", r"Target = |Boot\w* ")
        machine.send("reset -s\r")
        machine.end(exit_status("DONE"))
    if not os.path.exists(path + ".uefi-variables"):
        raise Failure("there is no file with UEFI's variables beside the disk")
    with test.machine(path, "--memory", "256M", "--display", "none") as machine:
        to_the_shell(machine)
        shell_command(machine, variable, r"D0 77 00 01|D0770001|01 00 77 D0")
        shell_command(machine, "bcfg boot dump", r"(?i)Desc\s*-\s*Reminder")
        machine.send("reset -s\r")
        machine.end(exit_status("DONE"))


@case("two namespaces of an NVMe controller are disks of a Linux with two processors, each with a queue of its own", cpus=2)
def nvme_linux(test):
    first, second = test.disk("first.img"), test.disk("second.img", seed=2)
    with test.linux("cloud", "--disk", first + ",bus=nvme,serial=NV1", "--disk", second + ",bus=nvme,ro", "--engine", "dbt",
                    append="doppel.more=yes", cpus=2) as machine:
        machine.expect(r"nvme nvme0: 2/0/0 default/read/poll queues")
        machine.expect(r"^doppel:/# ")
        for name, path in (("nvme0n1", first), ("nvme0n2", second)):
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            machine.command_line("sha256sum /dev/%s" % name, "^%s " % digest)
        machine.command_line("cat /sys/block/nvme0n1/device/serial; cat /sys/block/nvme0n2/ro", r"^NV1\s*\n1$")
        machine.command_line("dd if=/dev/urandom of=/tmp/x bs=64k count=16 2>&-; taskset 1 dd if=/tmp/x of=/dev/nvme0n1 bs=64k oflag=direct 2>&-; "
                             "taskset 2 dd if=/dev/nvme0n1 of=/tmp/y bs=64k count=16 iflag=direct 2>&-; cmp /tmp/x /tmp/y && echo the same", "^the same$")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


@case("iPXE boots a kernel over user networking's DHCP and TFTP: from a virtio card, and its script from an e1000")
def net_boot(test):
    folder = test.path("tftp")
    os.mkdir(folder)
    shutil.copy(asset("kernel", "cloud"), os.path.join(folder, "vmlinuz"))
    shutil.copy(asset("initramfs", "cloud"), os.path.join(folder, "initrd"))
    with open(os.path.join(folder, "boot.ipxe"), "w", encoding="utf-8") as file:
        file.write("#!ipxe\necho This came over the network.\nkernel vmlinuz console=ttyS0 panic=-1\ninitrd initrd\nboot\n")
    with open(os.path.join(folder, "off.ipxe"), "w", encoding="utf-8") as file:
        file.write("#!ipxe\necho So did this.\npoweroff\n")
    network = "user,tftp=%s,boot=on,bootfile=" % folder
    with test.machine("--memory", "512M", "--display", "none", "--engine", "dbt", "--net", network + "boot.ipxe") as machine:
        machine.expect(r"This came over the network\.")
        machine.expect(r"^doppel:/# ")
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))
    with test.machine("--memory", "256M", "--display", "none", "--engine", "dbt", "--net", network + "off.ipxe,model=e1000") as machine:
        machine.expect(r"So did this\.")


def menu_iso(test):
    """A CD with GRUB alone, for BIOS and UEFI: it waits for a key, says which came, and powers off."""
    tree, path = test.path("menu"), test.path("menu.iso")
    os.makedirs(os.path.join(tree, "boot", "grub"))
    with open(os.path.join(tree, "boot", "grub", "grub.cfg"), "w", encoding="utf-8") as file:
        file.write("if [ $grub_platform = pc ]; then\nserial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\nfi\n"
                   "set timeout=-1\nmenuentry 'The entry' --hotkey=x {\necho The entry was chosen.\nsleep 1\nhalt\n}\n")
    subprocess.run(["grub-mkrescue", "-o", path, tree], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return path


@case("SeaBIOS and OVMF start GRUB from a CD on the interpreter, too, and SeaBIOS a kernel", long=True)
def firmware_interpreter(test):
    menu = menu_iso(test)
    for options in ((), ("--firmware", "uefi")):
        with test.machine(menu, "--memory", "256M", "--display", "none", "--engine", "interp", *options) as machine:
            machine.expect(r"The entry", 2 * BOOT_SECONDS)
            machine.send("x")
            machine.expect(r"The entry was chosen\.")
            machine.end(exit_status("DONE"))
    with test.machine(rescue_iso(test), "--memory", "512M", "--engine", "interp") as machine:
        machine.expect(r"This is a CD\.")
        machine.expect(r"^doppel:/# ", 2 * BOOT_SECONDS)
        machine.send("poweroff -f\n")
        machine.end(exit_status("DONE"))


def goes_on(test, name, options, ready, key, answer, status="DONE"):
    """Keeps the machine when it is ready; a restored one takes the key."""
    socket, kept = test.path(name + ".monitor"), test.path(name + ".snapshot")
    with test.machine(*options, "--display", "none", "--memory", "256M", "--monitor", "socket:" + socket) as machine:
        machine.expect(ready)
        machine.read(0.5)
        with Monitor(socket) as monitor:
            monitor.snapshot(kept)
    with test.machine(restore=kept) as machine:
        machine.send(key)
        machine.expect(answer)
        machine.end(exit_status(status))


@case("machines kept while the BIOS waits for a key, in GRUB's menu and in UEFI's GRUB go on when they are restored")
def firmware_snapshot(test):
    menu = menu_iso(test)
    goes_on(test, "bios", ("--disk", boot_sector(test) + ",ro"), r"^the second sector was read$", "kq", r"^key k$")
    goes_on(test, "grub", (menu,), r"The entry", "x", r"The entry was chosen\.")
    goes_on(test, "uefi", (menu, "--firmware", "uefi"), r"The entry", "x", r"The entry was chosen\.")

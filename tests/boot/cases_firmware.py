"""What a person has on a disk, through firmware."""
import os
import shutil
import struct
import subprocess
import time
import zlib

from cases import asset, case
from machine import BOOT_SECONDS, DOPPEL, Failure, Monitor, exit_status

HERE = os.path.dirname(os.path.abspath(__file__))


def boot_sector(test, name="mbr.img"):
    """A disk with tests/boot/mbr.S on it."""
    path = test.path(name)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x7c00,--oformat=binary,--build-id=none",
                    os.path.join(HERE, "mbr.S"), "-o", path], check=True)
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
            machine.end(exit_status("DONE"))


def cells(lines, width, height):
    """The screen's characters, by rows, as what their cells of 9 by 16 pixels look like. lines: three bytes a pixel."""
    return [["".join(lines[16 * row + y][27 * column:27 * (column + 1)].hex() for y in range(16)) for column in range(width // 9)]
            for row in range(height // 16)]


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
    glyph = {}
    same = all(glyph.setdefault(character, row[i]) == row[i] for i, character in enumerate(text))
    return same and len(set(glyph.values())) == len(glyph) and set(row[len(text):]) == {glyph[" "]}


def sees(machine, monitor, picture, text, seconds=60):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        said = monitor.ask("screenshot " + picture)
        if os.path.exists(picture) and any(reads(row, text) for row in rows_of_screen(picture)):
            return
        machine.read(0.2)
    raise Failure("the screen never shows %r; the monitor says %r" % (text, said))


@case("a boot sector's output by BIOS calls is seen on the screen, and a key that is sent arrives")
def bios_screen(test):
    socket, picture = test.path("monitor"), test.path("screen.png")
    with test.machine(boot_sector(test), "--monitor", "socket:" + socket) as machine:
        while not os.path.exists(socket):
            machine.read(0.1)
        with Monitor(socket) as monitor:
            sees(machine, monitor, picture, "the second sector was read")
            monitor.ask("sendkey shift-g")
            sees(machine, monitor, picture, "key G")
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


def copy_of_disk(test):
    """The disk with Debian and GRUB on it, to be written to."""
    path = test.path("debian.img")
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", asset("disk"), path], check=True)
    return path


def to_a_login(machine):
    """Through GRUB's menu to a login, and power off from inside."""
    machine.expect("GNU GRUB")
    machine.expect(r"Linux version", 2 * BOOT_SECONDS)
    machine.expect(r"doppel-disk login: ", 3 * BOOT_SECONDS)
    machine.send("root\n")
    machine.expect("Password: ")
    machine.send("doppel\n")
    machine.expect(r"root@doppel-disk:~# ", BOOT_SECONDS)
    machine.command_line("echo root on $(findmnt -no SOURCE /)", r"^root on /dev/\w+$", BOOT_SECONDS)
    machine.send("poweroff\n")
    machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("Debian on a virtio disk boots through SeaBIOS and GRUB to a login, and powers off", long=True)
def bios_debian_virtio(test):
    with test.machine(copy_of_disk(test), "--memory", "512M", "--engine", "dbt") as machine:
        to_a_login(machine)


@case("Debian on an AHCI disk boots through SeaBIOS and GRUB to a login with two processors", long=True, cpus=2)
def bios_debian_ahci(test):
    with test.machine("--disk", copy_of_disk(test) + ",bus=ahci", "--memory", "512M", "--cpus", 2, "--engine", "dbt") as machine:
        to_a_login(machine)


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


@case("Debian on a virtio disk boots through OVMF and GRUB to a login", long=True)
def uefi_debian_virtio(test):
    with test.machine(copy_of_disk(test), "--memory", "512M", "--engine", "dbt", "--firmware", "uefi") as machine:
        to_a_login(machine)

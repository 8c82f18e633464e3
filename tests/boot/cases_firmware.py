"""What a person has on a disk, through firmware."""
import os
import shutil
import subprocess

from cases import asset, case
from machine import BOOT_SECONDS, DOPPEL, Failure, exit_status

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
        with test.machine(path, "--engine", engine) as machine:
            machine.expect(r"SeaBIOS \(version")
            machine.expect(r"^drive 80$")
            machine.expect(r"^the second sector was read$")
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
        file.write("serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\n"
                   "echo This is a CD.\nlinux /boot/vmlinuz console=ttyS0 panic=-1\ninitrd /boot/initrd\nboot\n")
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

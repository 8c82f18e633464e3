"""Whole systems on disks and CDs, each through its own boot loader: Debian, Xen, memtest86+."""
import os
import shutil
import subprocess

from cases import asset, case
from machine import BOOT_SECONDS, Failure, Skip, exit_status


def copy_of_disk(test, name="amd64"):
    """The disk with that Debian and GRUB on it, to be written to."""
    path = test.path("debian.img")
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", asset("disk", name), path], check=True)
    return path


def log_in(machine, key="d"):
    """Through GRUB's menu, by an entry's hotkey, to a shell."""
    machine.expect("GNU GRUB")
    machine.send(key)
    machine.expect(r"Linux version", 2 * BOOT_SECONDS)
    machine.expect(r"doppel-disk login: ", 3 * BOOT_SECONDS)
    machine.send("root\n")
    machine.expect("Password: ")
    machine.send("doppel\n")
    machine.expect(r"root@doppel-disk:~# ", BOOT_SECONDS)


def debian(test, bus, *options, name="amd64", key="d", device):
    """
    To a login with one processor, and power off from inside; with two, a reboot and the same again. The root is where it belongs.
    """
    disk = copy_of_disk(test, name)
    for cpus, ends in ((1, ["poweroff"]), (2, ["reboot", "poweroff"])):
        with test.machine("--disk", disk + ",bus=" + bus, "--memory", "512M", "--cpus", cpus, "--engine", "dbt", *options) as machine:
            for end in ends:
                log_in(machine, key)
                machine.command_line("echo $(nproc) processors, root on $(findmnt -no SOURCE /)",
                                     r"^%d processors, root on /dev/%s2?$" % (cpus, device), BOOT_SECONDS)
                machine.send(end + "\n")
            machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("Debian on a virtio disk boots through SeaBIOS and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def bios_debian_virtio(test):
    debian(test, "virtio", device="vda")


@case("Debian on an AHCI disk boots through SeaBIOS and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def bios_debian_ahci(test):
    debian(test, "ahci", device="sda")


@case("Debian on an NVMe disk boots through SeaBIOS and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def bios_debian_nvme(test):
    debian(test, "nvme", device="nvme0n1p")


@case("Debian on a USB disk boots through SeaBIOS and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def bios_debian_usb(test):
    debian(test, "usb", device="sda")


@case("Debian on a virtio disk boots through OVMF and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def uefi_debian_virtio(test):
    debian(test, "virtio", "--firmware", "uefi", device="vda")


@case("Debian on an NVMe disk boots through OVMF and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def uefi_debian_nvme(test):
    debian(test, "nvme", "--firmware", "uefi", device="nvme0n1p")


@case("Debian on a USB disk boots through OVMF and GRUB to a login with one processor and with two, reboots and powers off", long=True, cpus=2)
def uefi_debian_usb(test):
    debian(test, "usb", "--firmware", "uefi", device="sda")


@case("Debian for i386 boots through SeaBIOS and GRUB to a login with one processor and with two, with PAE", long=True, cpus=2)
def bios_debian_i386(test):
    debian(test, "ahci", name="i386", device="sda")


@case("Debian for i386 boots through SeaBIOS and GRUB to a login, without PAE: its kernel knows one processor", long=True)
def bios_debian_i386_non_pae(test):
    with test.machine(copy_of_disk(test, "i386"), "--memory", "512M", "--engine", "dbt") as machine:
        for end in ("reboot", "poweroff"):
            log_in(machine, "n")
            machine.command_line("echo kernel $(uname -r)", r"^kernel \S+-686$", BOOT_SECONDS)
            machine.send(end + "\n")
        machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("Xen 4.17 starts Debian as its first domain through GRUB's multiboot2, and its tools work", long=True)
def bios_xen(test):
    with test.machine(copy_of_disk(test, "xen"), "--memory", "768M", "--engine", "dbt") as machine:
        machine.expect("GNU GRUB")
        machine.send("x")
        machine.expect(r"Xen version 4\.17")
        machine.expect(r"Linux version", 2 * BOOT_SECONDS)
        machine.expect(r"^# ", 3 * BOOT_SECONDS)
        machine.send("xl info\n")
        machine.expect(r"^xen_version\s*: 4\.17", BOOT_SECONDS)
        machine.expect(r"^# ", BOOT_SECONDS)
        machine.send("xl list\n")
        machine.expect(r"^Domain-0\s+0\s+400\s", BOOT_SECONDS)
        machine.expect(r"^# ", BOOT_SECONDS)
        machine.send("exit\n")
        machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("Debian with systemd comes up on Xen 4.17 as its first domain to a login, its tools work, and it powers the machine off", long=True)
def bios_xen_systemd(test):
    with test.machine(copy_of_disk(test, "xen"), "--memory", "768M", "--engine", "dbt") as machine:
        log_in(machine)
        # xl needs Xen's daemons, and the login is there before they are: what is said of them meanwhile may share an answer's line.
        machine.command_line("systemctl start xen; echo daemons $(systemctl is-active xen)", r"daemons active", 2 * BOOT_SECONDS)
        machine.command_line("xl info", r"xen_version\s*: 4\.17", BOOT_SECONDS)
        machine.command_line("xl list", r"Domain-0\s+0\s+400\s", BOOT_SECONDS)
        machine.send("poweroff\n")
        machine.end(exit_status("DONE"), BOOT_SECONDS)


MEMTEST_CFG = """if [ $grub_platform = pc ]; then
linux /memtest86+x64.bin console=ttyS0,115200
else
linux /memtest86+x64.efi console=ttyS0,115200
fi
boot
"""


def memtest(test, *options):
    """One pass, without errors, on two processors. The longest of it is a wait of 160 s, to see whether bits fade."""
    tree, path = test.path("iso"), test.path("memtest.iso")
    os.makedirs(os.path.join(tree, "boot", "grub"))
    for name in ("memtest86+x64.bin", "memtest86+x64.efi"):
        if not os.path.exists("/boot/" + name):
            raise Skip("the package memtest86+ is not installed")
        shutil.copy("/boot/" + name, tree)
    with open(os.path.join(tree, "boot", "grub", "grub.cfg"), "w", encoding="utf-8") as file:
        file.write(MEMTEST_CFG)
    subprocess.run(["grub-mkrescue", "-o", path, tree], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    with test.machine(path, "--cpus", 2, "--engine", "dbt", *options) as machine:
        machine.expect(r"Memtest86\+? ?v6", 2 * BOOT_SECONDS)
        machine.expect(r"SMP: 2T \(PAR\)", BOOT_SECONDS)
        errors = machine.expect(r"Pass:\s+1\s+Errors:\s+(\d+)", 4 * BOOT_SECONDS)[1]
        if errors != "0":
            raise Failure("memtest86+ found %s errors" % errors)


@case("memtest86+ passes once on two processors through SeaBIOS", long=True, cpus=2)
def memtest_bios(test):
    memtest(test, "--memory", "32M")


@case("memtest86+ passes once on two processors through OVMF", long=True, cpus=2)
def memtest_uefi(test):
    memtest(test, "--memory", "128M", "--firmware", "uefi")

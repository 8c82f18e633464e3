"""The programs that bench/vmx.py compares: how each boots a Linux kernel that finds a processor with virtualization."""
import os
import shutil
import subprocess

from machine import DOPPEL

QEMU, BOCHS, SEABIOS = "/usr/bin/qemu-system-x86_64", "/usr/bin/bochs", "/usr/share/seabios"


def doppel(_, engine, kernel, initrd, append):
    return [DOPPEL, "run", "--memory", "768M", "--cpu", "i7-7500U", "--engine", engine, "--no-reboot", "--kernel", kernel,
            "--initrd", initrd, "--append", append]


def qemu(_folder, _engine, kernel, initrd, append):
    return [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max,svm=on", "-m", "768M", "-nodefaults", "-no-user-config",
            "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
            "-kernel", kernel, "-initrd", initrd, "-append", append]


def bochs(folder, _engine, kernel, initrd, append):
    """It boots from a CD, and Debian's is built with its debugger, which has to be told to let go."""
    grub = os.path.join(folder, "cd", "boot", "grub")
    os.makedirs(grub)
    shutil.copy(kernel, os.path.join(folder, "cd", "boot", "vmlinuz"))
    shutil.copy(initrd, os.path.join(folder, "cd", "boot", "initrd"))
    with open(os.path.join(grub, "grub.cfg"), "w", encoding="ascii") as file:
        file.write("linux /boot/vmlinuz %s\ninitrd /boot/initrd\nboot\n" % append)
    subprocess.run(["grub-mkrescue", "-o", os.path.join(folder, "cd.iso"), os.path.join(folder, "cd")], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(folder, "go"), "w", encoding="ascii") as file:
        file.write("c\n")
    with open(os.path.join(folder, "bochsrc"), "w", encoding="ascii") as file:
        file.write("""
display_library: rfb, options="timeout=0"
megs: 768
cpu: model=broadwell_ult, count=1, ips=50000000
romimage: file=%(seabios)s/bios.bin
vgaromimage: file=%(seabios)s/vgabios-stdvga.bin
ata0-master: type=cdrom, path=%(folder)s/cd.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=/dev/stdout
log: %(folder)s/bochs.log
clock: sync=none
""" % {"seabios": SEABIOS, "folder": folder})
    return [BOCHS, "-q", "-f", os.path.join(folder, "bochsrc"), "-rc", os.path.join(folder, "go")]


# Name: what it needs, its command line, for how many ticks of the guest's TSC each kind of work is measured (Bochs' ticks are instructions).
PEERS = {
    "doppel": ((DOPPEL,), doppel, 20000000000),
    "qemu": ((QEMU,), qemu, 20000000000),
    "bochs": ((BOCHS, SEABIOS), bochs, 50000000),
}

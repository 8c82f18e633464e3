"""
Debian's own QEMU with Debian's own KVM in the guest (L1), on emulated VT-x: what it boots (L2) is on hardware as far as both can
tell. L2's console is QEMU's terminal, and so the machine's.
"""
import os

import cases_nested
from cases import asset, case
from cases_firmware import boot_sector, menu_iso
from cases_nested import PROMPT, leave
from machine import BOOT_SECONDS, Failure

PARAMETERS = "ept vpid unrestricted_guest flexpriority vnmi eptad pml enable_apicv preemption_timer enable_shadow_vmcs"


def hypervisor(test, **how):
    """A machine at the prompt of a guest that has a /dev/kvm, and a Debian with QEMU in /mnt, which sees /guest as /srv."""
    machine = cases_nested.hypervisor(test, "--disk", os.path.join(asset("system", "qemu"), "image") + ",ro", **how)
    machine.command_line("mount -o ro /dev/vda /mnt && mount --bind /dev /mnt/dev && mount -t proc proc /mnt/proc && "
                         "mount -t tmpfs tmp /mnt/tmp && mount --bind /guest /mnt/srv && echo mounted", "^mounted$", BOOT_SECONDS)
    return machine


def qemu(machine, options):
    """Starts QEMU with KVM; end_of_guest when its guest powers off."""
    machine.send("chroot /mnt qemu-system-x86_64 -accel kvm -cpu host -m 192M -nographic -net none -no-reboot %s; echo status=$?\n" % options)


def end_of_guest(machine):
    machine.expect(r"^status=0$", BOOT_SECONDS)
    machine.expect(PROMPT)


def boots_linux(machine, kernel, initrd, cpus=1):
    qemu(machine, "-smp %d -kernel %s -initrd %s -append 'console=ttyS0 panic=-1 quiet doppel.test=cpu,clock doppel.cpus=%d'"
         % (cpus, kernel, initrd, cpus))
    for test in "cpu", "clock":
        machine.result(test, 2 * BOOT_SECONDS)
    end_of_guest(machine)


def all_is_used(machine):
    """Of VT-x by kvm-intel; what Linux sees of it is cpuinfo_i7_7500u's affair."""
    machine.send("cd /sys/module/kvm_intel/parameters; grep . %s | tr '\\n' ' '; cd /\n" % PARAMETERS)
    wanted = " ".join(name + ":Y" for name in PARAMETERS.split())
    said = machine.expect(r"^ept:.*? (?=doppel:)")[0].strip()
    if said != wanted:
        raise Failure("kvm_intel has %s" % said)


@case("Debian's QEMU with KVM in the guest boots the cloud kernel; kvm-intel uses all of VT-x that it can")
def qemu_kvm(test):
    with hypervisor(test) as machine:
        all_is_used(machine)
        boots_linux(machine, "/srv/vmlinuz", "/srv/initramfs")
        leave(machine)


@case("the same with two processors on both levels", long=True, cpus=2)
def qemu_kvm_smp(test):
    with hypervisor(test, cpus=2) as machine:
        boots_linux(machine, "/srv/vmlinuz", "/srv/initramfs", cpus=2)
        leave(machine)


@case("a 32-bit kernel with PAE and one without boot in Debian's QEMU with KVM in the guest", long=True)
def qemu_kvm_i386(test):
    kernels = ("686-pae", "686")
    files = {what + "-" + name: asset(what, name, optional=True) for name in kernels for what in ("kernel", "initramfs")}
    with hypervisor(test, files=files) as machine:
        for name in kernels:
            boots_linux(machine, "/srv/kernel-" + name, "/srv/initramfs-" + name)
        leave(machine)


@case("SeaBIOS boots a sector in real mode, and GRUB from a CD, in Debian's QEMU with KVM in the guest", long=True)
def qemu_kvm_real_mode(test):
    with hypervisor(test, files={"mbr.img": boot_sector(test), "menu.iso": menu_iso(test)}) as machine:
        qemu(machine, "-drive file=/srv/mbr.img,format=raw,readonly=on,if=virtio")
        machine.expect(r"SeaBIOS \(version", BOOT_SECONDS)
        machine.expect(r"^drive 80$", BOOT_SECONDS)
        machine.expect(r"^the second sector was read$")
        machine.send("k")
        machine.expect(r"^key k$")
        machine.send("q")
        end_of_guest(machine)
        qemu(machine, "-cdrom /srv/menu.iso")
        machine.expect(r"The entry", BOOT_SECONDS)
        machine.send("x")
        machine.expect(r"The entry was chosen\.")
        end_of_guest(machine)
        leave(machine)

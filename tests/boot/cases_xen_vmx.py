"""Xen with VT-x in the guest (L1): Debian as its first domain boots domains of types PVH and HVM (L2), whose console lines begin with `L2: `."""
import os

from cases import asset, case
from machine import BOOT_SECONDS, Failure, exit_status

# What Xen finds of VT-x when it starts.
ADVANCED = ("APIC MMIO access virtualisation", "APIC TPR shadow", "Extended Page Tables (EPT)", "Virtual-Processor Identifiers (VPID)",
            "Virtual NMI", "MSR direct-access bitmap", "Unrestricted Guest", "APIC Register Virtualization", "Virtual Interrupt Delivery",
            "Posted Interrupt Processing", "VMCS shadowing", "VM Functions", "Virtualisation Exceptions", "Page Modification Logging", "TSC Scaling")


def first_domain(test, *options, words="", cpu="i7-7500U"):
    """Xen, and in its first domain the test guest that starts a domain of its own."""
    directory = asset("xen", optional=True)
    return test.machine("--memory", "1G", "--cpu", cpu, "--no-reboot", "--kernel", os.path.join(directory, "xen"),
                        "--append", "no-real-mode com1=115200,8n1 console=com1 dom0_mem=480M,max:480M",
                        "--initrd", "%s console=hvc0 panic=-1 quiet doppel.test=xen %s" % (asset("kernel", "amd64"), words),
                        "--initrd", os.path.join(directory, "dom0"), *options)


def finds_features(machine):
    machine.expect(r"^\(XEN\) VMX: Supported advanced features:$")
    found = machine.expect(r"((?:^\(XEN\)  - .*\n)*)\(XEN\) HVM: ASIDs enabled\.$")[1]
    missing = [name for name in ADVANCED if "(XEN)  - %s\n" % name not in found]
    if missing:
        raise Failure("Xen does not find %s, but %r" % (", ".join(missing), found))
    machine.expect(r"^\(XEN\) HVM: Hardware Assisted Paging \(HAP\) detected$")
    machine.expect(r"^\(XEN\) HVM: HAP page sizes: 4kB, 2MB, 1GB$")


def boots(test, kind, *options, cpus=1, lines="", **how):
    words = "doppel.xen=%s doppel.xen_cpus=%d doppel.xen_config=%s" % (kind, cpus, lines)
    with first_domain(test, *options, words=words, **how) as machine:
        if not how:
            finds_features(machine)
        machine.expect(r"^L2: virt_caps +: pv hvm hap ", 3 * BOOT_SECONDS)
        machine.result("xen", 3 * BOOT_SECONDS)
        machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("Xen 4.17 finds all of VT-x that it knows, and a PVH domain boots Debian's kernel to user space under Debian's as first domain",
      tries=2)
def xen_pvh(test):
    boots(test, "pvh")


@case("an HVM domain of Xen's boots through hvmloader and SeaBIOS, with QEMU as its device model, to user space", long=True)
def xen_hvm(test):
    boots(test, "hvm")

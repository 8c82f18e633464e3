"""Hypervisors in the guest (L1): Linux' KVM on emulated VT-x boots a guest of its own (L2), whose console lines begin with `L2: `."""
import os
import re
import subprocess
import time

from cases import asset, case
from cases_nested import LOAD_KVM, PROMPT, initrd, leave
from machine import BOOT_SECONDS, DOPPEL, ROOT, Failure, Monitor, exit_status

# Parameters of kvm_intel, each of which it can do without.
PARAMETERS = "ept", "vpid", "unrestricted_guest", "flexpriority", "vnmi", "eptad", "pml", "enable_apicv", "preemption_timer", "enable_shadow_vmcs"
# Controls of VT-x that kvm_intel demands.
DEMANDED = set("""acknowledge-interrupt-on-exit cr8-load-exiting cr8-store-exiting external-interrupt-exiting hlt-exiting
    host-address-space-size ia32e-mode-guest interrupt-window-exiting invlpg-exiting monitor-exiting mov-dr-exiting mwait-exiting
    nmi-exiting rdpmc-exiting unconditional-io-exiting use-tsc-offsetting""".split())


def hypervisor(test, *options, cpu="i7-7500U", append=""):
    return test.machine("--memory", "768M", "--cpu", cpu, "--no-reboot", "--kernel", asset("kernel", "cloud"),
                        "--initrd", asset("hypervisor"), "--append", "console=ttyS0 panic=-1 quiet doppel.test=kvm " + append, *options)


def end(machine):
    machine.result("kvm", 3 * BOOT_SECONDS)
    machine.end(exit_status("DONE"))


def boots_a_guest(test, *options, **how):
    with hypervisor(test, *options, **how) as machine:
        end(machine)


@case("kvm-intel loads with all its features, and a guest of the guest boots Debian's cloud kernel to user space")
def kvm(test):
    boots_a_guest(test)


@case("the same without EPT and virtual interrupts: the guest's KVM has shadow page tables and injects what it emulates")
def kvm_shadow_paging(test):
    boots_a_guest(test, cpu="i7-7500U,vmx-enable-ept=off,vmx-use-tpr-shadow=off", append="doppel.kvm_features=any ")


@case("two processors in the guest, and two in its guest", cpus=2)
def kvm_smp(test):
    boots_a_guest(test, "--cpus", "2", append="doppel.kvm_cpus=2 ")


def monitor_of(machine, path):
    """The monitor of a machine that has just been started, as soon as it answers."""
    limit = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            return Monitor(path, BOOT_SECONDS)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > limit or not machine.read(0.1):
                raise Failure("the machine has no monitor") from None
            time.sleep(0.05)


@case("a machine is kept twice while its guest's guest boots, and goes on under the other engine")
def kvm_snapshot(test):
    sockets, kept = [test.path("monitor1"), test.path("monitor2")], [test.path("dbt"), test.path("interp")]
    with hypervisor(test, "--engine", "dbt", "--monitor", "socket:" + sockets[0]) as machine:
        machine.expect(r"^L2: ", 3 * BOOT_SECONDS)
        with monitor_of(machine, sockets[0]) as monitor:
            told = monitor.ask("info vmcs")
            if not re.search(r"^ 10 CPUID +[1-9]\d* +\d+\.\d+ ms$", told, re.MULTILINE):
                raise Failure("the monitor does not tell of exits by CPUID, but %r" % told[:500])
            monitor.snapshot(kept[0])
    with test.machine("--engine", "interp", "--monitor", "socket:" + sockets[1], restore=kept[0]) as machine:
        with monitor_of(machine, sockets[1]) as monitor:
            machine.read(3)
            monitor.snapshot(kept[1])
    with test.machine("--engine", "dbt", restore=kept[1]) as machine:
        end(machine)


@case("the engine changes many times while a guest of the guest boots", long=True)
def kvm_engine_switch(test):
    socket, switches = test.path("monitor"), 0
    with hypervisor(test, "--monitor", "socket:" + socket) as machine:
        machine.expect(r"^DOPPEL-READY")
        with monitor_of(machine, socket) as monitor:
            while "DOPPEL-TEST kvm" not in machine.seen:
                try:
                    monitor.ask("engine " + ("interp", "dbt")[switches % 2])
                except (OSError, Failure):      # it has ended
                    break
                switches += 1
                machine.read(0.3)
        end(machine)
    if switches < 5:
        raise Failure("the engine changed only %d times" % switches)


@case("on the interpreter", long=True)
def kvm_interp(test):
    boots_a_guest(test, "--engine", "interp")


@case("with each feature that kvm-intel can do without switched off in turn the guest's guest still boots", long=True)
def kvm_without(test):
    for parameter in PARAMETERS:
        boots_a_guest(test, append="doppel.kvm_intel=%s=0 " % parameter)


@case("on processors that lack any one of the features of VT-x that kvm-intel does not demand the guest's guest still boots", long=True)
def kvm_features(test):
    names = subprocess.run([DOPPEL, "run", "--cpu", "help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    for feature in sorted(set(re.findall(r"^  vmx-(\S+)$", names, re.MULTILINE)) - DEMANDED):
        boots_a_guest(test, cpu="i7-7500U,vmx-%s=off" % feature, append="doppel.kvm_features=any ")


@case("processors that differ in VT-x are refused by kvm-intel, and taken when all are as good as the least of them", cpus=2)
def kvm_uneven(test):
    uneven = "i7-7500U,vmx-enable-vpid=off@1"
    for cpu, answer in (uneven, r"kvm: CPU \d feature inconsistency!"), (uneven + ",vmx-lowest-common", "^/dev/kvm$"):
        with test.machine("--memory", "512M", "--cpu", cpu, "--cpus", 2, "--no-reboot", "--kernel", asset("kernel", "cloud"), "--initrd",
                          asset("hypervisor"), "--append", "console=ttyS0 panic=-1 quiet", terminal=True) as machine:
            machine.expect(PROMPT)
            machine.command_line(LOAD_KVM, answer, BOOT_SECONDS)
            leave(machine)


@case("a guest's guest boots whether translations are kept as long as the manual allows (--tlb stale) or not at all (--tlb fresh)", long=True)
def kvm_tlb(test):
    for policy in "stale", "fresh":
        boots_a_guest(test, "--tlb", policy)


def flags_of(text, name):
    return set(re.search(r"^%s\s*:\s*(.*)$" % name, text, re.MULTILINE)[1].split())


@case("Linux' /proc/cpuinfo on --cpu i7-7500U is that of a real one, but for differences that are known")
def cpuinfo_i7_7500u(test):
    lines = {"flags": set(), "vmx_flags": set(), "-": set(), "+": set()}
    with open(os.path.join(ROOT, "tests", "boot", "i7-7500U.cpuinfo"), encoding="ascii") as file:
        for line in file:
            if not line.startswith("#"):
                kind, _, words = line.partition(" ")
                lines[kind].update(words.partition(":")[0].split())
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        host = flags_of(file.read(), "flags")
    with test.machine("--memory", "256M", "--cpu", "i7-7500U", "--no-reboot", "--kernel", asset("kernel", "cloud"), "--initrd",
                      asset("initramfs", "cloud"), "--append", "console=ttyS0 panic=-1 quiet", terminal=True) as machine:
        machine.expect(PROMPT)
        told = machine.command_line("cat /proc/cpuinfo; echo told", r"(?s)^processor.*?^told$", BOOT_SECONDS)[0]
        leave(machine)
    got = flags_of(told, "flags") | flags_of(told, "vmx flags")
    want = lines["flags"] | lines["vmx_flags"]
    missing, more = want - got - lines["-"], got - want - lines["+"]
    missing -= {flag for flag in missing if flag in lines["flags"] and flag not in host}      # what no guest of this host can have
    stale = (lines["-"] & got) | (lines["+"] - got)
    if missing or more or stale:
        raise Failure("missing: %s; more: %s; no difference: %s" % (sorted(missing), sorted(more), sorted(stale)))


@case("three levels: KVM in the guest's guest, on KVM in the guest, boots a guest of its own", long=True)
def kvm_nested(test):
    inner = {"hypervisor": asset("hypervisor")}
    with test.machine("--memory", "1536M", "--cpu", "i7-7500U", "--no-reboot", "--kernel", asset("kernel", "cloud"),
                      "--initrd", initrd(test, (), inner), "--append",
                      "console=ttyS0 panic=-1 quiet doppel.test=kvm doppel.kvm_test=kvm doppel.kvm_memory=512 "
                      "doppel.kvm_initramfs=hypervisor doppel.kvm_words=quiet,doppel.kvm_features=any") as machine:
        machine.expect(r"^L2: L2: DOPPEL-TEST cpu ok", 6 * BOOT_SECONDS)
        end(machine)

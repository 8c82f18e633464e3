"""
Hypervisors in the guest: Linux' KVM on emulated VT-x boots a guest of its own. All are long: on a host with several times more work
than processors the guest's guest often stands still where it measures its delay loop (calibrate_delay), after no or two ticks of its PIT;
its interrupts are on, its hypervisor takes its own ticks and asks for no interrupt window. Why is not known; in one try each, a KVM without
reinjection of PIT ticks and a guest with another APIC timer stood still as well.
"""
import os
import time

from cases import asset, case
from machine import Failure, Monitor, exit_status

FEATURES = "ept", "vpid", "unrestricted_guest", "flexpriority", "vnmi", "eptad", "pml", "enable_apicv", "preemption_timer", "enable_shadow_vmcs"


def hypervisor(test, *options, engine="dbt", append=""):
    return test.machine("--memory", "768M", "--cpu", "i7-7500U", "--engine", engine, "--no-reboot", "--kernel", asset("kernel", "cloud"),
                        "--initrd", asset("hypervisor"), "--append", "console=ttyS0 panic=-1 quiet doppel.test=kvm " + append, *options)


def boots_a_guest(test, **how):
    with hypervisor(test, **how) as machine:
        machine.result("kvm")
        machine.end(exit_status("DONE"))


@case("kvm-intel loads with all its features, and a guest of the guest boots Debian's cloud kernel to user space", long=True)
def kvm(test):
    boots_a_guest(test)


@case("the same on the interpreter", long=True)
def kvm_interp(test):
    boots_a_guest(test, engine="interp")


@case("with each feature of VT-x that kvm-intel can do without switched off in turn the guest's guest still boots", long=True)
def kvm_without(test):
    for feature in FEATURES:
        boots_a_guest(test, append="doppel.kvm_intel=%s=0 " % feature)


@case("the engine changes many times while a guest of the guest boots", long=True)
def kvm_engine_switch(test):
    path, switches = test.path("monitor"), 0
    with hypervisor(test, "--monitor", "socket:" + path) as machine:
        while not os.path.exists(path):
            machine.read(0.05)
        with Monitor(path) as monitor:
            try:
                while machine.process.poll() is None:
                    monitor.ask("engine " + ("interp", "dbt")[switches % 2])
                    switches += 1
                    time.sleep(0.2)
                    machine.read(0.1)
            except (OSError, Failure):
                if switches < 20:
                    raise
        machine.result("kvm")
        machine.end(exit_status("DONE"))

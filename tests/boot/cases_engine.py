"""Boots on the interpreter (all others run on the translator), and with the engine changed under way."""
import os
import subprocess
import time

from cases import asset, case, to_a_shell
from machine import BOOT_SECONDS, DOPPEL, ROOT, TIMEOUT_FACTOR, Failure, Monitor, exit_status


@case("Debian's cloud kernel boots to a shell on the interpreter")
def interpreter(test):
    to_a_shell(test, "cloud", "x86_64", options=("--engine", "interp"))


@case("Debian's cloud kernel boots to a shell on the interpreter with two processors", cpus=2)
def interpreter_smp(test):
    to_a_shell(test, "cloud", "x86_64", cpus=2, options=("--engine", "interp"))


@case("a 32-bit kernel boots to a shell on the interpreter")
def interpreter_i386(test):
    to_a_shell(test, "686", "i686", optional=True, options=("--engine", "interp"))


def switched(test, cpus, options=(), pause=0.03, least=20):
    """Boots to the end with the engine changed every `pause` seconds (longer for a program that is slower: each time it begins with empty caches)."""
    path, switches, pause, end = test.path("monitor"), 0, pause * TIMEOUT_FACTOR, time.monotonic() + BOOT_SECONDS
    with test.linux("cloud", "--monitor", "socket:" + path, *options, append="quiet doppel.test=cpu", cpus=cpus) as machine:
        while not os.path.exists(path):
            machine.read(0.05)
        with Monitor(path) as monitor:
            try:
                while machine.process.poll() is None and time.monotonic() < end:
                    name = ("dbt", "interp")[switches % 2]
                    if "engine " + name not in monitor.ask("engine " + name):
                        raise Failure("the engine does not change")
                    switches += 1
                    machine.read(pause)
            except (OSError, Failure):
                if switches < least:
                    raise
        machine.expect(r"^DOPPEL-TEST cpu ok %d processors" % cpus)
        machine.end(exit_status("DONE"))
    if switches < least:
        raise Failure("only %d changes of engine" % switches)


@case("the engine changes between interpreter and translator many times while Debian boots")
def engine_switch(test):
    switched(test, 1)


@case("the engine of two processors changes many times while Debian boots", cpus=2)
def engine_switch_smp(test):
    switched(test, 2)


@case("the engine changes every few milliseconds", long=True)
def engine_switch_often(test):
    switched(test, 1, pause=0.002, least=300)


@case("the engine of two processors changes every few milliseconds", long=True, cpus=2)
def engine_switch_often_smp(test):
    switched(test, 2, pause=0.002, least=300)


def lockstep(test, kernel, *settings, engines="interp,dbt", work="cpu", programs=None):
    programs = programs or kernel
    options = ["--memory", "256M", "--no-reboot", "--console", "file:" + test.path("console"),
               "--kernel", asset("kernel", kernel, optional=kernel != "cloud"),
               "--initrd", asset("initramfs", programs, optional=programs != "cloud"),
               "--append", "console=ttyS0 panic=-1 doppel.test=" + work]
    run = subprocess.run([os.path.join(ROOT, "tools", "lockstep.py"), "--doppel", DOPPEL, "--engines", engines, *settings, "--",
                          *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         check=False)
    with open(test.log, "w") as log:
        log.write(run.stdout)
    if run.returncode:
        raise Failure("\n".join(run.stdout.splitlines()[:4]))


@case("with counted time interpreter and translator hold the same state all through a boot, and the same memory", cpus=2)
def lockstep_boot(test):
    lockstep(test, "cloud", "--every", "50021", "--memory", "2000")


@case("with counted time a boot whose engine changes at random moments goes through the states of one that keeps its engine")
def lockstep_switched(test):
    logs = []
    for pause, least in ((0.005, 20), (60, 0)):
        path = test.path("states-%d" % least)
        switched(test, 1, ("--clock", "instructions", "--state-log", path + ",every=1000003"), pause, least)
        with open(path) as log:
            logs.append([line.split()[:3] for line in log])
    for changed, kept in zip(*logs):
        if changed != kept:
            raise Failure("the states differ after %s instructions" % kept[0])
    if len(logs[0]) != len(logs[1]) or len(logs[1]) < 100:
        raise Failure("%d states, and %d with one engine" % (len(logs[0]), len(logs[1])))


@case("a run with counted time is repeated exactly", long=True, cpus=2)
def lockstep_repeated(test):
    lockstep(test, "cloud", "--every", "50021", "--memory", "2000", engines="dbt,dbt")


@case("in step through a boot whose programs are 32-bit ones, on a 64-bit kernel", cpus=2)
def lockstep_programs32(test):
    lockstep(test, "cloud", "--every", "100003", "--memory", "2000", programs="686")


@case("in step through the whole boot of a 32-bit kernel", long=True, cpus=2)
def lockstep_i386(test):
    lockstep(test, "686", "--every", "500003", "--memory", "5000")


@case("the same with the states compared each 997 instructions", long=True, cpus=2)
def lockstep_fine(test):
    lockstep(test, "cloud", "--every", "997", "--memory", "100000")


@case("in step through hashes, compression, floating point and division of user programs", long=True, cpus=2)
def lockstep_results(test):
    lockstep(test, "cloud", "--every", "100003", "--memory", "2000", work="results")

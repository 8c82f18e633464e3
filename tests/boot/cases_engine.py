"""Boots on the binary translator, and with the engine changed under way."""
import os

from cases import case, to_a_shell
from machine import Failure, Monitor, exit_status


@case("Debian's cloud kernel boots to a shell on the translator")
def dbt(test):
    to_a_shell(test, "cloud", "x86_64", options=("--engine", "dbt"))


@case("Debian's cloud kernel boots to a shell on the translator with two processors", cpus=2)
def dbt_smp(test):
    to_a_shell(test, "cloud", "x86_64", cpus=2, options=("--engine", "dbt"))


def switched(test, cpus):
    path, switches = test.path("monitor"), 0
    with test.linux("cloud", "--monitor", "socket:" + path, append="quiet doppel.test=cpu", cpus=cpus) as machine:
        while not os.path.exists(path):
            machine.read(0.05)
        with Monitor(path) as monitor:
            try:
                while machine.process.poll() is None:
                    name = ("dbt", "interp")[switches % 2]
                    if "engine " + name not in monitor.ask("engine " + name):
                        raise Failure("the engine does not change")
                    switches += 1
                    machine.read(0.03)
            except (OSError, Failure):
                if switches < 20:
                    raise
        machine.expect(r"^DOPPEL-TEST cpu ok %d processors" % cpus)
        machine.end(exit_status("DONE"))
    if switches < 20:
        raise Failure("only %d changes of engine" % switches)


@case("the engine changes between interpreter and translator many times while Debian boots")
def engine_switch(test):
    switched(test, 1)


@case("the engine of two processors changes many times while Debian boots", cpus=2)
def engine_switch_smp(test):
    switched(test, 2)

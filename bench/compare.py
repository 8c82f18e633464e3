#!/usr/bin/env python3
"""Measures the same Debian programs natively, in Doppel and in QEMU's TCG, side by side, and prints tables of medians and ratios.

usage: bench/compare.py [--quick] [--group NAME]... [--engines native,interp,dbt,tcg] [--runs N]
                        [--match TEXT] [--shared] [--json FILE]

Every run starts each engine in turn, so that a machine whose speed drifts is fair to all. --quick: one short run.
Groups: integer float memory system boot smp disk network idle. --match: only jobs whose name holds the text.
--shared: the machine has other work; take off the time that a program stood in the host's run queue.

The exit status is 1 when a program failed, gave another result than natively, or a floor was missed.
"""
import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import boot
import guests
import report
import workloads

IDLE_SECONDS = {True: 5, False: 20}
CLOCK_SLACK = 0.5   # seconds between a line printed in the guest and read here, at worst


def figure(outcome, shared):
    """The value of a job; where the machine is shared, its mean less the share of time that it stood in the run queue."""
    return outcome.mean * max(0.05, 1 - outcome.waited / outcome.host) if shared else outcome.value


def keep_in_memory(path):
    """Has the host read a file into its cache, with nothing left to be written back."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while file.read(1 << 20):
            pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group:
    """Runs the jobs of a group on the engines and keeps what they gave."""

    def __init__(self, name, group, arguments, system):
        self.name, self.group, self.arguments, self.system = name, group, arguments, system
        self.figures = {}       # job: engine: [seconds]
        self.problems = []
        self.checks = {}        # job: (engine, result) of the first engine

    def run(self):
        with tempfile.TemporaryDirectory(prefix="doppel-bench-") as folder:
            disk = port = server = None
            if self.name == "disk":
                disk = self.disk()
            if self.name == "network":
                port = free_port()
                server = subprocess.Popen(guests.in_tree(os.path.join(self.system, "tree"), guests.programs(self.system),
                                                         "/tmp/bench/bin/net", "serve", str(port)))
                time.sleep(0.5)
            try:
                for number in range(self.arguments.runs):
                    for engine in self.arguments.engines:
                        where = os.path.join(folder, "%s-%d" % (engine, number))
                        if disk:
                            keep_in_memory(disk)
                        os.mkdir(where)
                        stage = guests.Stage(self.system, guests.programs(self.system), where, self.group.jobs,
                                             {"BENCH_SECONDS": "0.2" if self.arguments.quick else "0.5"})
                        for name, outcome in guests.run_jobs(engine, stage, self.group.cpus, disk, port):
                            self.add(engine, name, outcome)
                        shutil.rmtree(where)
            finally:
                if server:
                    server.terminate()
                    server.wait()

    def disk(self):
        """
        The file that is measured, kept between runs. The host has all of it in its cache whenever an engine begins: so each one copies it from and
        to there, which is what both VMMs do unless told otherwise, and no engine gains by what the one before it has read.
        """
        path = os.path.join(guests.cache(), "bench-disk", "disk")
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                for _ in range(guests.DISK_MEBIBYTES):
                    file.write(os.urandom(1 << 20))
        return path

    def add(self, engine, name, outcome):
        where = "%s on %s" % (name, engine)
        if outcome.status != 0 or outcome.value is None:
            state = "was never heard of" if outcome.status is None else "ended with status %d" % outcome.status
            self.problems.append("%s %s: %s" % (where, state, outcome.output))
            return
        first = self.checks.setdefault(name, (engine, outcome.check))
        if first[1] != outcome.check:
            self.problems.append("%s gave %s, on %s %s" % (where, outcome.check, first[0], first[1]))
        if abs(outcome.host - outcome.guest) > CLOCK_SLACK + 0.05 * outcome.host:
            self.problems.append("%s: the guest's clock counted %.2f s, the host's %.2f s" % (where, outcome.guest, outcome.host))
        self.figures.setdefault(name, {}).setdefault(engine, []).append(figure(outcome, self.arguments.shared))


def booted(arguments, group):
    """From exec to the first line of user space, with 1 and 2 processors."""
    with tempfile.TemporaryDirectory(prefix="doppel-bench-") as cache:      # of what is not run here
        commands = {cpus: dict(boot.commands(cpus, "cpu", cache)) for cpus in (1, 2)}
    for cpus in commands:
        for _ in range(arguments.runs):
            for engine in arguments.engines:
                command = commands[cpus].get("qemu" if engine == "tcg" else engine)
                if command:
                    seconds = boot.run(command)["to user space, s"]
                    group.figures.setdefault("%d vCPU" % cpus, {}).setdefault(engine, []).append(seconds)


def process_seconds(pid):
    with open("/proc/%d/stat" % pid, encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(arguments, group, system):
    """The share of a host processor that an idle guest takes, in percent."""
    jobs, seconds = workloads.jobs(("idle", "sleep 1000")), IDLE_SECONDS[arguments.quick]
    with tempfile.TemporaryDirectory(prefix="doppel-bench-") as folder:
        for engine in arguments.engines:
            if engine == "native":
                continue
            where = os.path.join(folder, engine)
            os.mkdir(where)
            console = guests.Console(guests.guest_command(engine, guests.Stage(system, guests.programs(system), where, jobs, {}), 1, None, None))
            for _, line in console.lines():
                if line.startswith("BENCH-BEGIN"):
                    time.sleep(2)
                    before = process_seconds(console.process.pid)
                    time.sleep(seconds)
                    used = process_seconds(console.process.pid) - before
                    group.figures.setdefault("idle", {})[engine] = [100 * used / seconds]
                    break
            console.close()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--group", action="append", choices=workloads.NAMES)
    parser.add_argument("--engines", default="native,dbt,tcg")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--match", default="")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    arguments.engines = arguments.engines.split(",")
    for engine in arguments.engines:
        if engine not in guests.ENGINES:
            parser.error("no engine is called '%s'; there are %s" % (engine, ", ".join(guests.ENGINES)))
    if {"interp", "dbt"} & set(arguments.engines) and not os.access(guests.doppel(), os.X_OK):
        parser.error("there is no program %s; build it first: meson setup build && ninja -C build" % guests.doppel())
    if "tcg" in arguments.engines and not shutil.which(guests.QEMU):
        print("compare.py: there is no %s (package qemu-system-x86); going on without it" % guests.QEMU, file=sys.stderr)
        arguments.engines.remove("tcg")
    arguments.runs = arguments.runs or (1 if arguments.quick else 3)
    return arguments


def main():
    arguments = parse()
    groups = {name: group for name, group in workloads.groups(arguments.quick).items() if not arguments.group or name in arguments.group}
    system = guests.asset("system", "bench") if set(groups) != {"boot"} else None
    results, failed = {}, False
    for name, description in groups.items():
        chosen = [job for job in description.jobs if arguments.match.replace(" ", "_") in job.name]
        group = Group(name, description._replace(jobs=chosen), arguments, system)
        if name == "boot":
            booted(arguments, group)
        elif name == "idle":
            idle(arguments, group, system)
        elif chosen:
            group.run()
        medians = {job: {engine: statistics.median(values) for engine, values in by_engine.items()}
                   for job, by_engine in group.figures.items()}
        met = report.group(name, description, medians, group.problems, arguments.engines)
        failed = failed or not met or bool(group.problems)
        results[name] = {"figures": group.figures, "medians": medians, "problems": group.problems}
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"engines": arguments.engines, "runs": arguments.runs, "quick": arguments.quick, "shared": arguments.shared,
                       "groups": results}, file, indent=1)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Boots real kernels on doppel and checks what they say.

usage: tests/boot/run.py [--long] [--list] [--jobs N] [NAME...]

Without names the quick tests run, with --long all. Each machine's console is kept in
build/boot-logs/NAME.log. DOPPEL names another program to test, DOPPEL_ENGINE another engine
than dbt where a test asks for none, DOPPEL_TIMEOUT_FACTOR stretches the time limits. The last line is 'N passed, N failed, N skipped'.
"""
import argparse
import concurrent.futures
import os
import re
import sys
import tempfile
import threading
import time
import traceback

import cases
import cases_cli     # noqa: F401 (adds its tests to cases.ALL)
import cases_disk    # noqa: F401 (the same)
import cases_engine  # noqa: F401 (the same)
import cases_workload  # noqa: F401 (the same)
import cases_snapshot  # noqa: F401 (the same)
import cases_vmx  # noqa: F401 (the same)
import cases_nested  # noqa: F401 (the same)
import cases_selftests  # noqa: F401 (the same)
import cases_qemu  # noqa: F401 (the same)
import cases_xen_vmx  # noqa: F401 (the same)
import cases_firmware # noqa: F401 (the same)
import cases_installer # noqa: F401 (the same)
import cases_systems # noqa: F401 (the same)
import cases_screen  # noqa: F401 (the same)
import cases_translations  # noqa: F401 (the same)
from machine import DOPPEL, ROOT, Failure, Skip

LOGS = os.path.join(ROOT, "build", "boot-logs")


class Slots:
    """Host processors to share out: a test takes as many as its machines have vCPUs."""

    def __init__(self, count):
        self.count = self.free = count
        self.changed = threading.Condition()
        self.door = threading.Lock()    # one waits at a time, so that who wants much is not passed over

    def take(self, wanted):
        wanted = min(wanted, self.count)
        with self.door, self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        return wanted

    def give(self, taken):
        with self.changed:
            self.free += taken
            self.changed.notify_all()


def try_case(case):
    """One run of a test: its verdict, what it has to say, and the checks in it that count by themselves."""
    log = os.path.join(LOGS, case.name + ".log")
    if os.path.exists(log):
        os.remove(log)
    checks = []
    try:
        with tempfile.TemporaryDirectory(prefix="doppel-boot-") as folder:
            case.body(cases.Test(case.name, log, folder, checks))
        if any(check.verdict == "FAIL" for check in checks):
            raise Failure("a check in it failed")
        return "ok", case.proves, checks
    except Skip as skip:
        return "skip", str(skip), checks
    except Failure as failure:
        return "FAIL", "%s (console: %s)" % (failure, os.path.relpath(log, ROOT)), checks
    except Exception:       # the test's own fault; it must not hide the others
        return "FAIL", traceback.format_exc(), checks


def run_case(case, slots, results, print_lock):
    taken = slots.take(case.cpus)
    start = time.monotonic()
    try:
        for left in reversed(range(case.tries)):
            verdict, detail, checks = try_case(case)
            if verdict != "FAIL" or not left:
                break
            with print_lock:
                for check in checks:
                    if check.verdict == "FAIL":
                        print("again %s: %s: %s" % (case.name, check.name, check.detail))
                print("again %s: it failed: %s" % (case.name, detail), flush=True)
    finally:
        slots.give(taken)
    with print_lock:
        for check in checks:
            print("%-4s %s: %s%s" % (check.verdict, case.name, check.name, check.detail and ": " + check.detail))
        print("%-4s %-28s %5.1f s  %s" % (verdict, case.name, time.monotonic() - start, detail), flush=True)
        results += [check.verdict for check in checks] + [verdict]


def chosen(arguments):
    if not arguments.names:
        return [case for case in cases.ALL if arguments.long or not case.long]
    for name in arguments.names:
        if not any(re.fullmatch(name, case.name) for case in cases.ALL):
            sys.exit("run.py: no test is called %s; --list shows them" % name)
    return [case for case in cases.ALL if any(re.fullmatch(name, case.name) for name in arguments.names)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="run all tests, not just the quick ones")
    parser.add_argument("--list", action="store_true", help="list the tests and end")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="vCPUs to run at once")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a test, or a regular expression of names")
    arguments = parser.parse_args()
    if arguments.list:
        for case in cases.ALL:
            print("%-28s %-5s  %s" % (case.name, "long" if case.long else "quick", case.proves))
        return 0
    if not os.access(DOPPEL, os.X_OK):
        sys.exit("run.py: there is no %s; build first: meson setup build && ninja -C build" % DOPPEL)
    os.makedirs(LOGS, exist_ok=True)
    slots, results, print_lock = Slots(arguments.jobs), [], threading.Lock()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for case in chosen(arguments):
            pool.submit(run_case, case, slots, results, print_lock)
    failed = results.count("FAIL")
    print("%d passed, %d failed, %d skipped" % (results.count("ok"), failed, results.count("skip")))
    return 1 if failed else 0


sys.exit(main())

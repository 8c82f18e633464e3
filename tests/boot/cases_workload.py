"""Real programs in a Debian guest on the translator: their results are those of the same programs on the host."""
import collections
import json
import os
import shutil
import subprocess
import sys

from cases import asset, case
from machine import ROOT, Failure

sys.path.insert(0, os.path.join(ROOT, "bench"))
import guests  # noqa: E402

WORK = os.path.join(ROOT, "tests", "boot", "work")
QUICK_SECONDS, LONG_SECONDS = 200, 1200

# A command; alike: it prints the same natively, which is checked.
Job = collections.namedtuple("Job", "name command alike")


def alike(name, command):
    return Job(name, command, True)


def alone(name, command):
    return Job(name, command, False)


def content(test, system):
    """A folder with what the commands work on; the programs in C are compiled by the system's own compiler."""
    folder = test.path("content")
    shutil.copytree(WORK, folder)
    shutil.copytree(os.path.join(ROOT, "bench", "work"), os.path.join(folder, "work"))
    compile_all = 'cd /mnt; for f in *.c; do gcc -O2 -pthread -o "${f%.c}" "$f"; done'
    subprocess.run(guests.in_tree(os.path.join(system, "tree"), folder, "/bin/sh", "-c", compile_all,
                                  mounts='mount --bind %s "$0/mnt";' % folder), check=True)
    return folder


def outcomes(test, engine, system, folder, jobs, cpus, limit):
    where = test.path(engine)
    os.mkdir(where)
    stage = guests.Stage(system, folder, where, jobs, {"SHOW": 1})
    return dict(guests.run_jobs(engine, stage, cpus, log=test.log, limit=limit))


def programs(test, jobs, system="bench", cpus=1, limit=QUICK_SECONDS):
    """Runs the jobs in a guest, and natively those that have to give the same there."""
    here = asset("system", system, optional=True)
    folder = content(test, asset("system", "bench", optional=True))
    natively = [job for job in jobs if job.alike]
    native = outcomes(test, "native", here, folder, natively, cpus, limit) if natively else {}
    wrong = []
    for name, found in outcomes(test, "dbt", here, folder, jobs, cpus, limit).items():
        if found.status != 0:
            wrong.append("%s: status %s: %s" % (name, found.status, found.output))
        elif name in native and (native[name].status, native[name].check) != (0, found.check):
            wrong.append("%s: another result than on the host, %r" % (name, found.output))
    if wrong:
        raise Failure("; ".join(wrong)[:2000])


def stress(family, options):
    return alone(family, "stress-ng --quiet --verify --temp-path /tmp " + options)


STRESS = {
    "cpu": "--cpu 1 --cpu-ops 80",
    "matrix": "--matrix 1 --matrix-size 32 --matrix-ops 200",
    "memory": "--qsort 1 --qsort-size 4096 --qsort-ops 4 --memcpy 1 --memcpy-ops 2 --malloc 1 --malloc-ops 2000",
    "vm": "--vm 1 --vm-bytes 2M --vm-ops 2000 --vm-keep",
    "fork": "--fork 1 --fork-ops 40 --vfork 1 --vfork-ops 40 --clone 1 --clone-ops 40",
}


def longer(options, cpus):
    """The same options with ten times the operations, on each processor."""
    words = options.split()
    for i in range(0, len(words) - 1):
        if words[i].endswith("-ops"):
            words[i + 1] = str(10 * int(words[i + 1]))
        elif words[i + 1] == "1":
            words[i + 1] = str(cpus)
    return " ".join(words)


@case("stress-ng finds no wrong result in short runs of its cpu, matrix, memory, vm and fork families")
def workload_stress(test):
    programs(test, [stress(family, options) for family, options in STRESS.items()])


@case("a compiler, Python, LuaJIT, SQLite and OpenSSL give in the guest what they give on the host")
def workload_programs(test):
    programs(test, [
        alike("python", "python3 work/python.py"),
        alike("sqlite", "sqlite3 :memory: <work/sqlite.sql"),
        alike("openssl", "sh crypto.sh 500"),
        alike("gcc", "gcc -O1 -pthread -o out crosscode.c && cksum <out"),
        alike("luajit", "luajit work/lua.lua"),
    ])


@case("memory order between two processors is x86's, and code that one changes the other runs as it should", cpus=2)
def workload_order(test):
    programs(test, [alone("litmus", "./litmus 2"), alone("crosscode", "./crosscode")], cpus=2)


@case("the kernel's code changes under running programs: probes, tracers and static keys on and off", cpus=2)
def workload_tracing(test):
    programs(test, [alone("tracing", "bash tracing.sh")], cpus=2, limit=LONG_SECONDS)     # processors wait for each other at each step


def stress_longer(test, cpus):
    programs(test, [stress(family, longer(options, cpus)) for family, options in STRESS.items()], cpus=cpus, limit=LONG_SECONDS)


@case("stress-ng finds no wrong result with two processors", long=True, cpus=2)
def workload_stress_2(test):
    stress_longer(test, 2)


@case("stress-ng finds no wrong result with four processors", long=True, cpus=4)
def workload_stress_4(test):
    stress_longer(test, 4)


@case("memory order between four processors is x86's, in many more races", long=True, cpus=4)
def workload_order_4(test):
    programs(test, [alone("litmus", "./litmus 10"), *[alone("crosscode-%d" % i, "./crosscode") for i in range(10)]], cpus=4,
             limit=LONG_SECONDS)


@case("Python passes its own regression tests, two processors", long=True, cpus=2)
def workload_python_tests(test):
    names = """bigmem binascii bisect bool bytes bz2 cmath collections complex contextlib copy ctypes dataclasses datetime decimal deque dict
        enum exceptions float fractions functools generators hashlib heapq int itertools json list long lzma marshal math memoryview mmap
        operator ordered_dict pickle queue random range re set signal slice sort statistics string struct syntax thread threading
        time tuple unicode unicodedata weakref zlib"""
    # Finding libraries takes a compiler, which the system has not; the race removes a file from its disk, which is read only.
    command = "python3.11 -m test -q -i 'test_find_library_with_*' -i test_unpickle_module_race test_%s >/dev/null"
    programs(test, [alike(name, command % name) for name in names.split()], "workloads", 2, LONG_SECONDS)


@case("node and Java, whose compilers write code while it runs, give what they give on the host", long=True, cpus=2)
def workload_jit(test):
    programs(test, [
        alike("node", "node work.js"),
        alike("java", "java Work.java"),
        alike("java-compiled", "java -Xcomp -XX:TieredStopAtLevel=1 Work.java"),
    ], "workloads", 2, LONG_SECONDS)


@case("QEMU's own translator runs in the guest, and its programs give what they give natively", long=True)
def workload_qemu_user(test):
    programs(test, [alike("sum", "qemu-x86_64 /bin/busybox sh -c 'seq 1 3000 | sha256sum'"),
                    alike("sort", "qemu-x86_64 /bin/busybox sh -c 'seq 1 3000 | sort -r | md5sum'"),
                    alike("compress", "qemu-x86_64 /bin/busybox sh -c 'seq 1 9000 | gzip | gunzip | md5sum'")], "workloads", 1, LONG_SECONDS)


@case("the benchmark boots guests with one and two processors and tells how long that took")
def bench_boot(test):
    figures = test.path("figures")
    run = subprocess.run([os.path.join(ROOT, "bench", "compare.py"), "--quick", "--group", "boot", "--engines", "dbt", "--json", figures],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=QUICK_SECONDS, check=False)
    if run.returncode:
        raise Failure("status %d: %s" % (run.returncode, run.stdout[-1000:]))
    with open(figures, encoding="utf-8") as file:
        medians = json.load(file)["groups"]["boot"]["medians"]
    for row in ("1 vCPU", "2 vCPU"):
        if not medians[row]["dbt"] > 0 or "| %s | " % row not in run.stdout:
            raise Failure("no row '%s':\n%s" % (row, run.stdout))

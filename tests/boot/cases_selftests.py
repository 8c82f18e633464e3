"""KVM's own selftests in a guest whose kvm-intel runs on emulated VT-x; what each is expected to say is in kvm_selftests.def."""
import collections
import os
import re

from cases import asset, case
from machine import BOOT_SECONDS, ROOT, Failure, exit_status

Row = collections.namedtuple("Row", "when name arguments parameters verdict reason")
ROW = re.compile(r'^SELFTEST\((\w+), (\w+), "(.*)", "(.*)", (PASS|SKIP|STOPPED), "(.*)"\)$', re.MULTILINE)
PROMPT = r"^doppel:\S*# "
STATUS_PASS, STATUS_SKIP = 0, 4     # as the kernel's selftests end
STATUS_STOPPED, LIMIT = (142, 143), 60  # what is expected to take too long is stopped after so many seconds, or by its own alarm
TIMED_TRIES = 3


def table():
    with open(os.path.join(ROOT, "tests", "boot", "kvm_selftests.def"), encoding="utf-8") as file:
        text = file.read()
    rows = [Row(*row) for row in ROW.findall(text)]
    if len(rows) != text.count("\nSELFTEST("):
        raise Failure("kvm_selftests.def has a row of another form")
    return rows


def initrd(test):
    """The hypervisor guest's archive, followed by the selftests': Linux unpacks both."""
    path = test.path("initrd")
    with open(path, "wb") as both:
        for part in asset("hypervisor"), asset("selftests", optional=True):
            with open(part, "rb") as archive:
                both.write(archive.read())
    return path


def verdict(machine, row):
    """Runs one: PASS, FAIL, SKIP or STOPPED, and the line that says why."""
    limit = "LIMIT=%d " % LIMIT if row.verdict == "STOPPED" else ""
    machine.send("%sselftest %s %s\n" % (limit, row.name, row.arguments))
    found = machine.expect(r"(?s)^(.*)^SELFTEST %s status=(\d+)\n" % row.name, 3 * BOOT_SECONDS)
    machine.expect(PROMPT)
    status = int(found[2])
    if status == STATUS_PASS:
        return "PASS", ""
    if limit and status in STATUS_STOPPED:
        return "STOPPED", ""
    why = re.search(r"# SKIP - (.*)|Test Assertion Failure ====\s+(.*)", found[1])
    return "SKIP" if status == STATUS_SKIP else "FAIL", "%s (status %d)" % (why[1] or why[2] if why else "it says nothing", status)


def busy():
    """Too much else runs on the host for what measures time."""
    return os.getloadavg()[0] > 1.5 * os.cpu_count()


def judge(test, machine, row):
    """One selftest is one check: a failure where it does not end as the table says, a skip where that is not a pass."""
    for _ in range(TIMED_TRIES if row.when == "TIMED" else 1):
        found, why = verdict(machine, row)
        if found == row.verdict:
            break
    name = " ".join([row.name, *([row.parameters] if row.parameters else [])])
    if found == "PASS" and row.verdict != "SKIP":
        test.check(name, "ok", "")
    elif found == row.verdict:
        test.check(name, "skip", "%s: %s" % (found, row.reason))
    elif row.when == "TIMED" and busy():
        test.check(name, "skip", "it measures time, and the host is busy: %s" % why)
    else:
        test.check(name, "FAIL", "%s, not %s as in the table: %s" % (found, row.verdict, why))


def run(test, rows, cpus):
    """Rows whose modules have the same parameters share a machine."""
    archive = initrd(test)
    for parameters in sorted({row.parameters for row in rows}):
        with test.machine("--memory", "2G", "--cpu", "i7-7500U,monitor=on", "--cpus", cpus, "--no-reboot", "--kernel", asset("kernel", "cloud"),
                          "--initrd", archive, "--append", "console=ttyS0 panic=-1 loglevel=1", terminal=True) as machine:
            machine.expect(PROMPT)
            machine.command_line("for m in $(cat /lib/kvm/order); do case $m in kvm-intel*) o='%s' ;; kvm.ko*) o=force_emulation_prefix=1 ;; "
                                 "*) o= ;; esac; insmod /lib/kvm/$m $o; done; ls /dev/kvm" % parameters, "^/dev/kvm$", BOOT_SECONDS)
            machine.expect(PROMPT)
            for row in rows:
                if row.parameters == parameters:
                    judge(test, machine, row)
            machine.send("poweroff -f\n")
            machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("those of KVM's selftests that show VT-x best say what the table expects")
def kvm_selftests_quick(test):
    run(test, [row for row in table() if row.when == "QUICK"], cpus=1)


@case("all of KVM's selftests say what the table expects", long=True, cpus=2, tries=2)
def kvm_selftests(test):
    run(test, table(), cpus=2)

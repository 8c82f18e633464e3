#!/usr/bin/env python3
"""Dependencies point one way: reads the #include lines under src/ and reports each that leads upwards.

Each folder of src/ is a room. A room may include itself and the rooms listed for it here: x86, mmu and
vmx stand beside each other and may know one another, all else leads downwards. Prints the
offending lines; the exit status is 1 if there are any.
"""
import os
import re
import sys

BELOW = {                       # room: what it may include besides itself
    "base": "",
    "state": "base",
    "mem": "base state",
    "bus": "base state mem",
    "backend": "base",
    "dev": "base state mem bus backend",
    "x86": "base state mem bus mmu vmx",
    "mmu": "base state mem bus x86 vmx",
    "vmx": "base state mem bus x86 mmu",
    "engine": "base state mem bus x86 mmu vmx",
    "vcpu": "base state mem bus x86 mmu vmx engine",
    "machine": "base state mem bus backend dev x86 mmu vmx engine vcpu",
    "api": "base state mem bus backend dev x86 mmu vmx engine vcpu machine",
    "cli": "base state mem bus backend dev x86 mmu vmx engine vcpu machine api",
}
# Open to the rooms named here: the vCPU's state, data only, is what the CPU's rooms work on, and work.h is
# its letter box, through which they ask another vCPU for something.
# A device or a backend knows no vCPU; only the local APIC, a part of the processor, knows its own.
COMMON_GROUND = {
    "vcpu/vcpu.h": "x86 mmu vmx engine",
    "vcpu/work.h": "x86 mmu vmx engine",
}
EXCEPTIONS = {
    ("dev/lapic.h", "vcpu/vcpu.h"),
}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


def includes(src):
    """Yields (file, line number, included file), paths relative to src."""
    for folder, _, names in os.walk(src):
        for name in sorted(names):
            if not name.endswith((".c", ".h", ".def", ".inc", ".S")):
                continue
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8") as file:
                text = file.read()
            for match in INCLUDE.finditer(text):
                target = match[1]
                beside = os.path.join(folder, target)
                target = os.path.relpath(beside if os.path.exists(beside) else os.path.join(src, target), src)
                yield os.path.relpath(path, src), text.count("\n", 0, match.start()) + 1, target


def room(path):
    return path.split(os.sep)[0] if os.sep in path else None


def main():
    src = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "src")
    src, wrong = os.path.normpath(src), []
    for path, line, target in includes(src):
        here, there = room(path), room(target)
        if here == there or there is None or not os.path.exists(os.path.join(src, target)):
            continue            # its own room, or a generated or foreign header
        where = "src/%s:%d includes %s" % (path, line, target)
        if here not in BELOW:
            wrong.append("%s, but no rule knows the room '%s'" % (where, here))
        elif here in COMMON_GROUND.get(target, "").split() or (path, target) in EXCEPTIONS:
            continue
        elif there not in BELOW[here].split():
            wrong.append("%s, but '%s' may not know '%s'" % (where, here, there))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


sys.exit(main())

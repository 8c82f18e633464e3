#!/usr/bin/env python3
"""pick-modules.py TREE OUT NAME...: copies kernel modules and all they depend on to OUT.

TREE is an unpacked lib/modules/VERSION. OUT/order lists the files in an order in which insmod
can load them. A name that is not there as a module is taken to be built in.
"""
import os
import shutil
import struct
import sys


def sections(elf):
    """Yields (name, contents) of an ELF file of either class."""
    wide = elf[4] == 2
    shoff = struct.unpack_from("<Q" if wide else "<I", elf, 0x28 if wide else 0x20)[0]
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A if wide else 0x2E)
    form = "<IIQQQQ" if wide else "<IIIIII"
    rows = [struct.unpack_from(form, elf, shoff + i * size) for i in range(count)]
    strings = rows[names][4]
    for name, _, _, _, offset, length in rows:
        start = strings + name
        yield elf[start:elf.index(b"\0", start)].decode(), elf[offset:offset + length]


def dependencies(path):
    with open(path, "rb") as file:
        info = dict(sections(file.read())).get(".modinfo", b"")
    found = []
    for item in info.split(b"\0"):
        key, _, value = item.decode().partition("=")
        if key == "depends":
            found += [name for name in value.split(",") if name]
        elif key == "softdep" and value.startswith("pre: "):
            found += value[5:].split(" post:")[0].split()
    return found


def canonical(name):
    return name.replace("-", "_")


def main():
    tree, out, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
    files = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            if name.endswith(".ko"):
                files[canonical(name[:-3])] = os.path.join(folder, name)
    order = []

    def add(name):
        path = files.get(canonical(name))
        if path is None or os.path.basename(path) in order:
            return
        for other in dependencies(path):
            add(other)
        order.append(os.path.basename(path))
        shutil.copy(path, out)

    os.makedirs(out, exist_ok=True)
    for name in wanted:
        add(name)
    with open(os.path.join(out, "order"), "w", encoding="ascii") as file:
        file.writelines(name + "\n" for name in order)


main()

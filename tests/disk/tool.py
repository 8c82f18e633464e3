#!/usr/bin/env python3
"""tool.py DOPPEL: what `doppel disk` makes, changes and says, with qemu-img as the judge."""
import json
import os
import random
import subprocess
import sys
import tempfile

DOPPEL = os.path.abspath(sys.argv[1])


def run(*words, status=0):
    """A command's output; it must end with `status`."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == status, "%s: status %d\n%s" % (" ".join(words), done.returncode, output)
    return output


def disk(*words, status=0):
    return run(DOPPEL, "disk", *words, status=status)


def refused(reason, *words):
    output = disk(*words, status=2)
    assert reason in output, output
    assert output.count("\n") == 1, output


def same(a, b):
    def form(name):
        return "qcow2" if name.endswith(".qcow2") else "raw"
    run("qemu-img", "compare", "-q", "-f", form(a), "-F", form(b), a, b)


def make_raw(name, size=24 << 20, seed=1):
    """Random pieces with holes between."""
    rng = random.Random(seed)
    with open(name, "wb") as file:
        file.truncate(size)
        for _ in range(12):
            file.seek(rng.randrange(0, size - 700000))
            file.write(rng.randbytes(rng.randrange(1, 600000)))


def new_images_are_what_was_asked_for():
    disk("create", "a.qcow2", "3G")
    disk("create", "--cluster-size", "4K", "--lazy-refcounts", "b.qcow2", "100M")
    disk("create", "--format", "qcow2", "c", "1T")
    disk("create", "d.img", "10M")
    for name, size, cluster in (("a.qcow2", 3 << 30, 65536), ("b.qcow2", 100 << 20, 4096), ("c", 1 << 40, 65536)):
        theirs = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", name))
        assert theirs["virtual-size"] == size and theirs["cluster-size"] == cluster
        assert theirs["format-specific"]["data"]["lazy-refcounts"] == (name == "b.qcow2")
        ours = json.loads(disk("info", "--json", "--format", "qcow2", name))
        assert ours["size"] == size and ours["cluster_size"] == cluster and ours["lazy_refcounts"] == (name == "b.qcow2")
        run("qemu-img", "check", "-q", "-f", "qcow2", name)
        disk("check", "--format", "qcow2", name)
    assert os.path.getsize("d.img") == 10 << 20


def images_are_converted_both_ways():
    make_raw("r.img")
    disk("convert", "r.img", "q.qcow2")
    disk("convert", "--cluster-size", "2M", "r.img", "large.qcow2")
    disk("convert", "q.qcow2", "back.img")
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compat=0.10", "r.img", "old.qcow2")
    disk("convert", "old.qcow2", "new.qcow2")
    for name in ("q.qcow2", "large.qcow2", "back.img", "new.qcow2"):
        same("r.img", name)
    for name in ("q.qcow2", "large.qcow2", "new.qcow2"):
        run("qemu-img", "check", "-q", name)
    assert os.stat("back.img").st_blocks * 512 < 16 << 20, "holes stay holes"


def an_overlay_is_committed():
    make_raw("base.img", seed=2)
    run("cp", "base.img", "expected.img")
    disk("create", "--base", "base.img", "over.qcow2")
    disk("create", "--base", "over.qcow2", "top.qcow2", "30M")
    os.truncate("expected.img", 30 << 20)
    for name in ("top.qcow2", "expected.img"):
        run("qemu-io", "-f", "qcow2" if name.endswith("2") else "raw", "-c", "write -P 7 1M 300k", "-c", "write -z 5M 64k", "-c",
            "write -P 9 29M 4k", name)
    same("top.qcow2", "expected.img")
    refused("say --backing", "commit", "top.qcow2")
    disk("commit", "--backing", "top.qcow2")
    disk("commit", "--backing", "over.qcow2")
    same("base.img", "expected.img")
    refused("no backing file", "commit", "a.qcow2")


def sizes_change():
    make_raw("s.img", seed=3)
    disk("convert", "s.img", "s.qcow2")
    for name in ("s.img", "s.qcow2"):
        refused("--shrink", "resize", name, "20M")
        disk("resize", "--shrink", name, "20M")
        disk("resize", name, "+500G")
    same("s.img", "s.qcow2")
    run("qemu-img", "check", "-q", "s.qcow2")
    assert json.loads(disk("info", "--json", "s.qcow2"))["size"] == (500 << 30) + (20 << 20)


def a_part_that_appears_behind_an_overlay_is_zero():
    make_raw("b2.img", seed=4)
    disk("create", "--base", "b2.img", "o2.qcow2", "10M")
    refused("--backing", "resize", "o2.qcow2", "20M")
    disk("resize", "--backing", "o2.qcow2", "20M")
    run("cp", "b2.img", "e2.img")
    os.truncate("e2.img", 10 << 20)
    os.truncate("e2.img", 20 << 20)
    same("o2.qcow2", "e2.img")


def counts_are_repaired():
    make_raw("p.img", seed=5)
    disk("convert", "p.img", "p.qcow2")
    with open("p.qcow2", "r+b") as file:                        # the counts of some clusters in use, and of some that are not
        table = int.from_bytes(file.read(56)[48:56], "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * 5)
        file.write(b"\0\0")
        file.seek(block + 2 * 3000)
        file.write(b"\0\1")
    found = json.loads(disk("check", "--json", "p.qcow2", status=1))
    assert found["missing"] == 1 and found["broken"] == 0, found
    disk("check", "--repair", "p.qcow2")
    run("qemu-img", "check", "-q", "p.qcow2")
    same("p.img", "p.qcow2")


def mistakes_get_a_sentence():
    refused("did you mean 'create'", "creat", "x.qcow2", "1G")
    refused("how large", "create", "x.qcow2")
    refused("not a size", "create", "x.qcow2", "big")
    refused("File exists", "create", "a.qcow2", "1G")
    refused("not the size of a cluster", "create", "--cluster-size", "3K", "x.qcow2", "1G")
    refused("raw and qcow2", "create", "--format", "vmdk", "x.qcow2", "1G")
    refused("neither clusters", "create", "--lazy-refcounts", "x.img", "1G")
    refused("an overlay is a qcow2 image", "create", "--base", "d.img", "x.img")
    refused("usage: doppel disk resize", "resize", "a.qcow2")
    refused("No such file", "info", "nowhere.qcow2")
    refused("nothing to check", "check", "d.img")
    refused("say format=qcow2, or format=raw", "info", "c")
    assert not os.path.exists("x.qcow2") and not os.path.exists("x.img")


def main():
    passed = failed = 0
    cases = (new_images_are_what_was_asked_for, images_are_converted_both_ways, an_overlay_is_committed, sizes_change,
             a_part_that_appears_behind_an_overlay_is_zero, counts_are_repaired, mistakes_get_a_sentence)
    with tempfile.TemporaryDirectory(prefix="doppel-disk-") as directory:
        os.chdir(directory)
        for case in cases:
            try:
                case()
                passed += 1
            except AssertionError as error:
                print("FAIL %s: %s" % (case.__name__, error))
                failed += 1
        os.chdir("/")
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


sys.exit(main())

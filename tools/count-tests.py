#!/usr/bin/env python3
"""count-tests.py TESTLOG.json: what a run of `meson test` amounts to.

Prints each failed program with the end of its output and the reason of each skip, then one
line 'N passed, N failed, N skipped'. A program that counts its own cases (such a line of its own,
cmocka's summary or TAP) counts as that many, any other as one.
"""
import json
import re
import sys

PLAIN = re.compile(r"^(?:\w+: )?(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.MULTILINE)
CMOCKA = re.compile(r"^\[ +(PASSED|FAILED|SKIPPED) +\] (\d+) test", re.MULTILINE)
TAP = re.compile(r"^(not ok|ok) \d+(?: .*?(# SKIP.*))?", re.MULTILINE | re.IGNORECASE)
GOOD = {"OK", "EXPECTEDFAIL"}


def own_count(output):
    """(passed, failed, skipped) as the program itself says, or None."""
    plain, cmocka, tap = PLAIN.findall(output), CMOCKA.findall(output), TAP.findall(output)
    if plain:
        return tuple(int(number or 0) for number in plain[-1])
    if cmocka:
        return tuple(sum(int(n) for word, n in cmocka if word == which) for which in ("PASSED", "FAILED", "SKIPPED"))
    if tap:
        failed = sum(word.lower() == "not ok" for word, _ in tap)
        skipped = sum(bool(skip) for _, skip in tap)
        return len(tap) - failed - skipped, failed, skipped
    return None


def judge(test):
    output = test.get("stdout", "") + "\n" + test.get("stderr", "")
    counted = own_count(output)
    if test["result"] == "SKIP":
        reason = output.strip().splitlines()[-1:] or ["it gave no reason"]
        print("skip %s: %s" % (test["name"], reason[0]))
        return 0, 0, 1
    if test["result"] in GOOD:
        for line in re.findall(r"^skip\b.*", output, re.MULTILINE | re.IGNORECASE):
            print("%s: %s" % (test["name"], line))
        return counted or (1, 0, 0)
    print("FAIL %s (%s)" % (test["name"], test["result"].lower()))
    print("\n".join("    " + line for line in output.strip().splitlines()[-25:]))
    passed, failed, skipped = counted or (0, 1, 0)
    return passed, max(1, failed), skipped


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        counts = [judge(json.loads(line)) for line in file if line.strip()]
    total = [sum(column) for column in zip(*counts)] or [0, 0, 0]
    print("%d passed, %d failed, %d skipped" % tuple(total))
    return 1 if total[1] else 0


sys.exit(main())

#!/usr/bin/env python3
"""Finds the first difference between two instruction logs.

usage: tools/compare-logs.py LOG LOG [VCPU]

A log is made by `doppel run --trace cpu_insn --log FILE ...`: a line for each instruction with its address, bytes, text
and the registers that it changed. Only the lines of one vCPU (default 0) are compared, in order; what else is in
the files is passed over. Prints the difference with the instructions that led to it. Exit status: 0 the logs agree as far
as both go, 1 they differ, 2 they cannot be read.
"""
import collections
import itertools
import sys

CONTEXT = 10


def instructions(path, vcpu):
    """The lines of one vCPU, without the trace point's name."""
    prefix = f"cpu_insn {vcpu} "
    with open(path, errors="replace") as log:
        for line in log:
            if line.startswith(prefix):
                yield line[len(prefix):].rstrip("\n")


def compare(first, second, vcpu):
    before = collections.deque(maxlen=CONTEXT)
    pairs = itertools.zip_longest(instructions(first, vcpu), instructions(second, vcpu))
    for number, (a, b) in enumerate(pairs, 1):
        if a is None or b is None:
            print(f"the logs agree for {number - 1} instructions, then {first if a is None else second} ends")
            return 0
        if a != b:
            print(f"the first difference is at instruction {number}:")
            for line in before:
                print(f"    {line}")
            print(f"  < {a}\n  > {b}")
            return 1
        before.append(a)
    print("the logs agree")
    return 0


def main():
    if len(sys.argv) not in (3, 4):
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    try:
        return compare(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else "0")
    except OSError as error:
        print(f"compare-logs: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

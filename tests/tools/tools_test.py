#!/usr/bin/env python3
"""The scripts that judge the tree must themselves be right: a wrong count would hide a failure."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools")


def tool(name, *arguments):
    done = subprocess.run([sys.executable, os.path.join(TOOLS, name), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def count(*tests):
    """What count-tests.py makes of these (result, output) pairs: status and last line."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        for number, (result, output) in enumerate(tests):
            print(json.dumps({"name": "t%d" % number, "result": result, "stdout": output}), file=file)
        file.flush()
        status, output = tool("count-tests.py", file.name)
    return status, output.splitlines()[-1]


class CountTests(unittest.TestCase):
    def test_a_program_without_a_count_is_one_test(self):
        self.assertEqual(count(("OK", "hello")), (0, "1 passed, 0 failed, 0 skipped"))

    def test_cmocka_cases_count_each(self):
        self.assertEqual(count(("OK", "[  PASSED  ] 5 test(s).")), (0, "5 passed, 0 failed, 0 skipped"))
        self.assertEqual(count(("FAIL", "[  PASSED  ] 5 test(s).\n[  FAILED  ] 2 test(s), listed below:")),
                         (1, "5 passed, 2 failed, 0 skipped"))

    def test_a_count_of_its_own_is_believed(self):
        self.assertEqual(count(("OK", "100000 passed, 0 failed, 3 skipped")), (0, "100000 passed, 0 failed, 3 skipped"))

    def test_a_crash_after_good_cases_is_a_failure(self):
        self.assertEqual(count(("FAIL", "[  PASSED  ] 5 test(s).")), (1, "5 passed, 1 failed, 0 skipped"))
        self.assertEqual(count(("TIMEOUT", "")), (1, "0 passed, 1 failed, 0 skipped"))

    def test_a_skip_is_no_pass(self):
        self.assertEqual(count(("SKIP", "no such device")), (0, "0 passed, 0 failed, 1 skipped"))

    def test_results_add_up(self):
        self.assertEqual(count(("OK", ""), ("OK", "[  PASSED  ] 2 test(s)."), ("FAIL", ""), ("SKIP", "")),
                         (1, "3 passed, 1 failed, 1 skipped"))


class CheckRooms(unittest.TestCase):
    def rooms(self, files):
        with tempfile.TemporaryDirectory() as src:
            for name, text in files.items():
                os.makedirs(os.path.join(src, os.path.dirname(name)), exist_ok=True)
                with open(os.path.join(src, name), "w", encoding="ascii") as file:
                    file.write(text)
            return tool("check-rooms.py", src)

    def test_downwards_is_allowed(self):
        self.assertEqual(self.rooms({"base/a.h": "", "mem/b.c": '#include "base/a.h"\n'}), (0, ""))

    def test_upwards_is_reported_with_its_line(self):
        status, output = self.rooms({"base/a.c": '\n#include "mem/b.h"\n', "mem/b.h": ""})
        self.assertEqual(status, 1)
        self.assertIn("src/base/a.c:2 includes mem/b.h", output)

    def test_a_device_knows_no_vcpu(self):
        status, _ = self.rooms({"vcpu/vcpu.h": "", "dev/uart.c": '#include "vcpu/vcpu.h"\n'})
        self.assertEqual(status, 1)

    def test_cpu_rooms_share_the_vcpu_state(self):
        self.assertEqual(self.rooms({"vcpu/vcpu.h": "", "mmu/walk.c": '#include "vcpu/vcpu.h"\n'}), (0, ""))

    def test_x86_and_mmu_know_each_other(self):
        self.assertEqual(self.rooms({"x86/a.h": '#include "mmu/b.h"\n', "mmu/b.h": "", "mmu/c.c": '#include "x86/a.h"\n'}), (0, ""))


if __name__ == "__main__":
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    outcome = unittest.TextTestRunner(verbosity=0).run(suite)
    bad = len(outcome.failures) + len(outcome.errors)
    print("%d passed, %d failed, 0 skipped" % (outcome.testsRun - bad, bad))
    sys.exit(1 if bad else 0)

#!/usr/bin/env python3
"""Machines by name: what the subcommands do to them, and what is left when they end, crash or are killed."""
import os
import re
import signal
import subprocess

from harness import SECONDS, Case, exit_status, main, wait_until


class Commands(Case):
    def test_a_machine_is_listed_and_described(self):
        self.start(name="web")
        (row,) = self.ps()
        self.assertEqual((row["name"], row["state"], row["cpus"], row["memory"]), ("web", "Running", 1, 16 << 20))
        self.assertEqual(row["pid"], self.processes[0].pid)
        self.assertRegex(self.doppel("ps"), r"(?m)^web +Running +%d +1 +16 MiB " % row["pid"])
        text = self.doppel("info", "web")
        for line in (r"state +Running", r"engine +dbt", r"memory +16 MiB", r"kernel +%s" % self.image, r"device +uart0"):
            self.assertRegex(text, "(?m)^%s$" % line)
        self.assertEqual(self.doppel("ps", "--names"), "web\n")

    def test_pause_stops_the_guest_and_resume_lets_it_go_on(self):
        self.start(name="web")
        self.doppel("pause", "web")
        self.assertEqual(self.state("web"), "Paused")
        count = self.ask("web", "GET", "/api/v1/vm.counters", status=200)[1]["machine"]["instructions"]
        self.assertEqual(self.ask("web", "GET", "/api/v1/vm.counters", status=200)[1]["machine"]["instructions"], count)
        self.assertIn("paused already", self.doppel("pause", "web", status="REFUSED"))
        self.doppel("resume", "web")
        self.assertEqual(self.state("web"), "Running")
        self.assertIn("not paused", self.doppel("resume", "web", status="REFUSED"))
        wait_until("the guest runs again",
                   lambda: self.ask("web", "GET", "/api/v1/vm.counters")[1]["machine"]["instructions"] > count)

    def test_reset_starts_the_guest_anew(self):
        process = self.start(name="web")
        self.doppel("reset", "web")
        self.assertEqual(process.stdout.read(1), b">")

    def test_counters_are_shown_by_pattern(self):
        self.start(name="web")
        self.assertRegex(self.doppel("counters", "web", "instr*"), r"^ +[1-9][0-9]* +instructions +\S.*\n$")
        self.assertRegex(self.doppel("counters", "web", "--all", "trap_vmcall"), r"^ +0 +trap_vmcall ")

    def test_media_changes_the_cd_also_across_a_snapshot(self):
        def drive(name):
            return re.search(r"(?m)^CD-ROM drive +_disk0: (.*)$", self.doppel("info", name))[1]

        image = os.path.join(self.folder, "a cd.iso")
        with open(image, "wb") as file:
            file.truncate(1 << 16)
        process = self.start("--cdrom", "none", name="web")
        self.assertEqual(drive("web"), "empty")
        self.assertIn("no-such.iso", self.doppel("media", "web", "no-such.iso", status="USAGE"))
        self.assertIn("'nonsense'", self.doppel("media", "web", "nonsense", image, status="REFUSED"))
        self.doppel("media", "web", os.path.relpath(image, self.folder), cwd=self.folder)
        self.assertEqual(drive("web"), image)
        snapshots = [os.path.join(self.folder, name) for name in ("full", "empty")]
        self.doppel("snapshot", "web", snapshots[0])
        self.doppel("media", "--force", "web", "_disk0", "none")
        self.assertEqual(drive("web"), "empty")
        self.doppel("snapshot", "web", snapshots[1])
        process.stdin.write(b"q")
        process.stdin.flush()
        process.wait(SECONDS)
        for snapshot, there in zip(snapshots, (image, "empty")):
            name = self.doppel("restore", "-d", snapshot).strip()
            self.assertEqual(drive(name), there)
            self.doppel("media", name, image)
            self.assertEqual(drive(name), image)
            self.assertIn("done", self.doppel("monitor", name, "media none"))
            self.assertEqual(drive(name), "empty")
        self.start(name="other")
        self.assertIn("has no CD-ROM drive", self.doppel("media", "other", image, status="REFUSED"))

    def test_stop_presses_the_power_button(self):
        process = self.start(name="web")
        self.assertNotIn("has not powered off", self.doppel("stop", "web"))
        self.assertEqual(process.wait(SECONDS), exit_status("DONE"))
        (row,) = self.ps()
        self.assertEqual((row["state"], row["exit_status"], row["reason"]), ("Ended", 0, "the guest powered off"))

    def test_stop_reaches_a_paused_guest(self):
        process = self.start(name="web")
        self.doppel("pause", "web")
        self.assertNotIn("has not powered off", self.doppel("stop", "web"))
        self.assertEqual(process.wait(SECONDS), exit_status("DONE"))

    def test_stop_ends_a_guest_that_ignores_the_button(self):
        process = self.start(name="web")
        process.stdin.write(b"i")
        process.stdin.flush()
        self.assertEqual(process.stdout.read(1), b"i")
        said = self.doppel("stop", "--time-out", "3", "web")
        self.assertIn("waiting up to 1 s for the guest to power off ('doppel stop --force web' does not wait)", said)
        self.assertIn("has not powered off within 3 s", said)
        self.assertEqual(process.wait(SECONDS), exit_status("DONE"))
        self.assertEqual(self.ps()[0]["reason"], "ended through its control socket")

    def test_stop_ends_a_process_that_does_not_answer(self):
        process = self.start(name="web")
        process.send_signal(signal.SIGSTOP)
        self.assertIn("does not answer and is killed", self.doppel("stop", "web"))
        self.assertEqual(process.wait(SECONDS), -signal.SIGKILL)

    def test_what_ended_is_removed(self):
        process = self.start(name="web")
        self.assertIn("it runs", self.doppel("rm", "web", status="REFUSED"))
        process.stdin.write(b"q")
        process.stdin.flush()
        process.wait(SECONDS)
        self.doppel("rm", "web")
        self.assertEqual(self.ps(), [])
        self.assertEqual(os.listdir(os.path.join(self.runtime, "doppel")), [])
        self.start(name="other")
        self.doppel("rm", "--force", "other")
        self.assertEqual(self.ps(), [])

    def test_commands_name_what_is_wrong(self):
        for command in ("info", "stop", "pause", "counters"):
            self.assertIn("no machine 'web'", self.doppel(command, "web", status="NO_MACHINE"))
        self.assertIn("no such machine", self.doppel("rm", "web", status="NO_MACHINE"))
        self.assertIn("needs NAME", self.doppel("info", status="USAGE"))
        self.assertIn("no option '--forse'", self.doppel("stop", "--forse", "web", status="USAGE"))
        self.assertIn("too much", self.doppel("info", "a", "b", status="USAGE"))
        self.assertIn("'../x' is not a name", self.doppel("run", "--name", "../x", *self.guest(), status="USAGE"))
        self.assertIn("usage: doppel stop", self.doppel("stop", "--help"))


class Names(Case):
    def test_a_name_belongs_to_one_machine_at_a_time(self):
        first = self.start(name="web")
        self.assertIn("runs already", self.doppel("run", "--name", "web", *self.guest(), status="USAGE"))
        self.assertEqual(self.state("web"), "Running")
        first.stdin.write(b"q")
        first.stdin.flush()
        first.wait(SECONDS)
        self.start(name="web")
        self.assertEqual(self.state("web"), "Running")

    def test_machines_without_a_name_get_numbers_and_leave_nothing(self):
        machines = [self.start() for _ in range(2)]
        self.assertEqual([row["name"] for row in self.ps()], ["vm1", "vm2"])
        for process in machines:
            process.stdin.write(b"q")
            process.stdin.flush()
            process.wait(SECONDS)
        self.assertEqual(os.listdir(os.path.join(self.runtime, "doppel")), [])

    def test_a_killed_one_without_a_name_makes_room_for_the_next(self):
        for _ in range(3):
            process = self.start()
            self.assertEqual([row["name"] for row in self.ps()], ["vm1"])
            process.kill()
            process.wait()
            self.assertEqual(self.state("vm1"), "Crashed")
        self.assertEqual(self.doppel("run", "-d", *self.guest()), "vm1\n")
        os.kill(self.ps()[0]["pid"], signal.SIGKILL)
        wait_until("it is dead", lambda: self.state("vm1") == "Crashed")
        self.start()
        self.assertEqual([(row["name"], row["state"]) for row in self.ps()], [("vm1", "Crashed"), ("vm2", "Running")])

    def test_a_machine_that_could_not_start_leaves_nothing(self):
        self.doppel("run", "--name", "web", "--kernel", "no-such-kernel", status="USAGE")
        self.assertEqual(self.ps(), [])

    def test_what_is_not_ours_alone_is_refused(self):
        folder = os.path.join(self.runtime, "doppel")
        os.mkdir(folder, 0o777)
        os.chmod(folder, 0o777)
        self.assertIn("mode 0700", self.doppel("run", "--name", "web", *self.guest(), status="USAGE"))
        os.chmod(folder, 0o700)

    def test_files_and_socket_are_for_their_owner(self):
        self.start(name="web")
        for path in (self.file("web", "api.sock"), self.file("web", "lock"), self.file("web", "record.json"), self.file("web", "")):
            self.assertEqual(os.stat(path).st_mode & 0o077, 0, path)

    def test_a_deep_runtime_directory_will_do(self):
        deep = os.path.join(self.runtime, *["directory-with-a-long-name"] * 8)
        os.makedirs(deep, 0o700)
        self.environment["XDG_RUNTIME_DIR"] = self.runtime = deep
        self.start(name="web")
        self.assertIn("Running", self.doppel("info", "web"))


class Crashes(Case):
    def crash(self, number, reason):
        process = self.start(name="web")
        process.send_signal(number)
        self.assertEqual(process.wait(SECONDS), -number)
        (row,) = self.ps()
        self.assertEqual(row["state"], "Crashed")
        self.assertIn(reason, row["reason"])
        self.assertIn("does not run", self.doppel("info", "web", status="NO_MACHINE"))

    def test_a_killed_machine_shows_as_crashed(self):
        self.crash(signal.SIGKILL, "SIGKILL")

    def test_a_crash_shows_its_signal(self):
        self.crash(signal.SIGSEGV, "Segmentation fault")
        self.start(name="web")
        self.assertEqual(self.state("web"), "Running")

    def test_killed_at_any_moment_it_leaves_nothing_locked(self):
        disk = os.path.join(self.folder, "disk.img")
        with open(disk, "wb") as file:
            file.truncate(1 << 20)
        for moment in range(25):
            process = self.start("--disk", disk, name="web", ready=None)
            try:
                process.wait(moment * 0.004)        # from before it has a name to after its first instructions
            except subprocess.TimeoutExpired:
                pass
            self.assertIsNone(process.poll(), "it ended by itself at moment %d" % moment)
            process.kill()
            process.wait()
            self.assertIn(self.state("web"), ("Crashed", None))
        self.start("--disk", disk, name="web")
        self.assertEqual(self.state("web"), "Running")
        self.doppel("stop", "web")
        self.assertEqual(self.state("web"), "Ended")


main(__name__)

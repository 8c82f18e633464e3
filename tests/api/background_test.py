#!/usr/bin/env python3
"""Machines in the background: consoles, logs, the monitor, snapshots, signals, and what a service manager offers and hears."""
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time

from harness import DOPPEL, SECONDS, Case, UnixConnection, exit_status, main, wait_until


class Background(Case):
    def background(self, *options, name="web"):
        """`doppel run --detach` with the test guest, up to its first byte in the log."""
        self.assertEqual(self.doppel("run", "-d", "--name", name, *self.guest(), *options), name + "\n")
        wait_until("the guest has written", lambda: ">" in self.doppel("logs", name))

    def type(self, name, text):
        """Types on the console, through a pipe."""
        console = subprocess.Popen([DOPPEL, "console", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment)
        self.processes.append(console)
        console.stdin.write(text)
        console.stdin.flush()
        return console

    def pid(self, name="web"):
        return next(machine["pid"] for machine in self.ps() if machine["name"] == name)

    def ended(self, name="web"):
        wait_until("the machine has ended", lambda: self.state(name) in ("Ended", "Crashed"))
        return next(machine for machine in self.ps() if machine["name"] == name)


def write_all(descriptor, data):
    while data:
        data = data[os.write(descriptor, data):]


class Consoles(Background):
    def test_the_console_takes_input_and_is_logged(self):
        self.background()
        console = self.type("web", b"hello")
        self.assertEqual(console.stdout.read(6), b">hello")
        self.assertEqual(self.doppel("logs", "web"), ">hello")

    def test_several_see_the_same(self):
        self.background()
        consoles = [self.type("web", b"") for _ in range(3)]
        for console in consoles:
            self.assertEqual(console.stdout.read(1), b">")
        consoles[0].stdin.write(b"hi")
        consoles[0].stdin.flush()
        for console in consoles:
            self.assertEqual(console.stdout.read(2), b"hi")

    def on_a_terminal(self):
        """A console on a terminal: its process, our end of the terminal, and a function that waits for text there."""
        ours, theirs = pty.openpty()
        console = subprocess.Popen([DOPPEL, "console", "web"], stdin=theirs, stdout=theirs, stderr=theirs, env=self.environment)
        self.processes.append(console)
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        seen = b""

        def expect(text):
            nonlocal seen
            limit = time.monotonic() + SECONDS
            while text not in seen:
                self.assertTrue(time.monotonic() < limit, (text, seen))
                if select.select([ours], [], [], 0.1)[0]:
                    seen += os.read(ours, 4096)

        return console, ours, expect

    def test_on_a_terminal_a_key_detaches(self):
        self.background()
        console, ours, expect = self.on_a_terminal()
        expect(b">")
        os.write(ours, b"abc")
        expect(b"abc")
        os.write(ours, b"\x01h")
        expect(b"Ctrl-A d  detach")
        os.write(ours, b"\x01d")
        expect(b"detached")
        self.assertEqual(console.wait(SECONDS), exit_status("DONE"))
        self.assertEqual(self.state("web"), "Running")

    def test_what_is_pasted_waits_for_a_guest_that_stands_still(self):
        self.background()
        self.doppel("pause", "web")
        console, ours, expect = self.on_a_terminal()
        expect(b">")
        text = "".join(str(number) + " " for number in range(10000))
        write_all(ours, text.encode())
        self.doppel("resume", "web")
        expect(text[-100:].encode())
        self.assertEqual(self.doppel("logs", "web"), ">" + text)
        self.doppel("pause", "web")
        write_all(ours, text.encode() + b"\x01d")          # the key works though the guest reads nothing
        expect(b"detached")
        self.assertEqual(console.wait(SECONDS), exit_status("DONE"))

    def test_what_is_not_there_is_named(self):
        self.background()
        self.assertIn("web: '\u00e4' is on no key", self.doppel("type", "web", "\u00e4", status="REFUSED"))
        self.assertIn("the text must be UTF-8", self.doppel("type", "web", os.fsdecode(b"\xe4"), status="USAGE"))
        self.assertIn("no counter matches 'zz*'", self.doppel("counters", "web", "zz*", status="USAGE"))
        self.assertIn("no machine 'wep' that runs", self.doppel("clone", "wep", status="NO_MACHINE"))

    def test_the_console_ends_with_the_machine(self):
        self.background()
        console = self.type("web", b"q")
        self.assertEqual(console.wait(SECONDS), exit_status("DONE"))
        self.assertEqual(console.stdout.read(), b">q")

    def test_a_terminal_of_its_own_is_not_shared(self):
        self.start(name="web")
        self.assertIn("not shared", self.doppel("console", "web", status="REFUSED"))
        self.assertIn("no log", self.doppel("logs", "web", status="REFUSED"))

    def test_logs_are_followed_to_the_end(self):
        self.background()
        logs = subprocess.Popen([DOPPEL, "logs", "-f", "web"], stdout=subprocess.PIPE, env=self.environment)
        self.processes.append(logs)
        self.assertEqual(logs.stdout.read(1), b">")
        self.type("web", b"abcq")
        self.assertEqual(logs.stdout.read(), b"abcq")
        self.assertEqual(logs.wait(SECONDS), exit_status("DONE"))

    def test_a_background_machine_has_no_terminal(self):
        self.assertIn("no terminal", self.doppel("run", "-d", "--console", "stdio", *self.guest(), status="USAGE"))

    def test_a_start_that_fails_says_so_and_leaves_nothing(self):
        self.assertIn("no-such-kernel", self.doppel("run", "-d", "--name", "web", "--kernel", "no-such-kernel", status="USAGE"))
        self.assertEqual(self.ps(), [])


class Monitors(Background):
    def test_commands_and_sessions(self):
        self.background()
        self.assertRegex(self.doppel("monitor", "web", "info", "cpus"), r"^processor 0 ")
        lines = subprocess.run([DOPPEL, "monitor", "web"], input="stop\nstep 2\ncontinue\n", stdout=subprocess.PIPE, text=True,
                               env=self.environment, timeout=SECONDS, check=True).stdout.splitlines()
        self.assertEqual(len(lines), 2, lines)

    def test_what_is_refused_is_an_error(self):
        self.background()
        self.assertIn("no command 'nonsense'", self.doppel("monitor", "web", "nonsense", status="REFUSED"))
        self.assertIn("neither a number nor a register", self.doppel("monitor", "web", "x", "blue", status="REFUSED"))
        session = subprocess.run([DOPPEL, "monitor", "web"], input="step\ncpu 0\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env=self.environment, timeout=SECONDS, check=False)
        self.assertEqual((session.stdout, session.stderr), ("processor 0\n", "stop the machine first\n"))
        self.assertEqual(session.returncode, exit_status("REFUSED"))

    def test_a_session_that_leaves_lets_the_machine_go_on(self):
        self.background()
        self.doppel("monitor", "web", "stop")
        wait_until("the guest answers", lambda: self.answers(b"x"))

    def answers(self, byte):
        console = self.type("web", byte)
        return select.select([console.stdout], [], [], 5)[0] and byte in console.stdout.read(2)

    def test_a_stopped_machine_can_be_ended(self):
        self.background()
        monitor = subprocess.Popen([DOPPEL, "monitor", "web"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment)
        self.processes.append(monitor)
        monitor.stdin.write(b"stop\n")
        monitor.stdin.flush()
        self.assertTrue(monitor.stdout.readline())
        self.doppel("stop", "--force", "web")
        self.assertEqual(self.state("web"), "Ended")


class Snapshots(Background):
    def test_a_machine_is_kept_and_made_again_beside_itself(self):
        self.background()
        directory = os.path.join(self.folder, "kept")
        self.doppel("snapshot", "web", directory + "/")
        self.assertEqual(self.state("web"), "Running")
        self.assertIn("kept", self.doppel("snapshot", "web", directory, status="REFUSED"))
        self.assertEqual(self.doppel("restore", directory, "-d", "--name", "twin"), "twin\n")
        for name in ("web", "twin"):
            self.assertIn(b"xy", self.type(name, b"xy").stdout.read(3 if name == "web" else 2))
        self.doppel("snapshot", "--parent", directory, "web", os.path.join(self.folder, "more"))
        self.doppel("stop", "web", "twin")

    def test_disks_that_go_over_to_overlays_stay_the_machines(self):
        disk, overlays = os.path.join(self.folder, "disk.img"), os.path.join(self.folder, "overlays")
        with open(disk, "wb") as file:
            file.truncate(1 << 20)
        os.mkdir(overlays)
        self.background("--disk", disk)
        for turn, name in ((1, "disk-0.qcow2"), (2, "disk-0-2.qcow2")):
            self.doppel("snapshot", "web", os.path.join(self.folder, "kept%d" % turn), "--disks", overlays)
            info = self.ask("web", "GET", "/api/v1/vm.info", status=200)[1]
            self.assertEqual(info["config"]["disks"][0]["path"], os.path.join(overlays, name))
        self.assertEqual([name for name in os.listdir(os.path.join(self.folder, "kept1")) if name.startswith("disk")], [])
        self.assertIn("no-such", self.doppel("snapshot", "web", os.path.join(self.folder, "not"), "--disks", os.path.join(self.folder, "no-such", "place"), status="REFUSED"))
        self.assertIn("Not a directory", self.doppel("snapshot", "web", os.path.join(self.folder, "not"), "--disks", disk, status="REFUSED"))
        self.ask("web", "PUT", "/api/v1/vm.shutdown", status=204)
        self.ask("web", "PUT", "/api/v1/vm.boot", status=204)
        info = self.ask("web", "GET", "/api/v1/vm.info", status=200)[1]
        self.assertEqual(info["config"]["disks"][0]["path"], os.path.join(overlays, "disk-0-2.qcow2"))
        self.doppel("snapshot", "check", os.path.join(self.folder, "kept1"))
        self.doppel("stop", "--force", "web")
        with open(disk, "r+b") as file:
            file.write(b"!")
        self.assertIn("changed after the snapshot", self.doppel("snapshot", "check", os.path.join(self.folder, "kept1"), status="USAGE"))

    def test_cloud_hypervisors_requests(self):
        self.background()
        directory = os.path.join(self.folder, "kept")
        os.mkdir(directory)             # as its clients do
        self.ask("web", "PUT", "/api/v1/vm.pause", status=204)
        self.ask("web", "PUT", "/api/v1/vm.snapshot", {"destination_url": "file://" + directory}, status=204)
        self.assertEqual(self.state("web"), "Paused")
        self.doppel("serve", "-d", "--name", "twin")
        self.assertEqual(self.state("twin"), "Empty")
        self.ask("twin", "PUT", "/api/v1/vm.restore", {"source_url": "file:///no/such/place"}, status=400)
        self.ask("twin", "PUT", "/api/v1/vm.restore", {"source_url": "file://" + directory}, status=204)
        self.assertEqual(self.state("twin"), "Paused")
        self.ask("twin", "PUT", "/api/v1/vm.restore", {"source_url": "file://" + directory}, status=405)
        self.ask("twin", "PUT", "/api/v1/vm.resume", status=204)
        self.assertEqual(self.type("twin", b"xy").stdout.read(2), b"xy")


def thread_names(pid):
    """Of those that are there; one that serves a request may end meanwhile."""
    tasks, names = "/proc/%d/task" % pid, set()
    for task in os.listdir(tasks):
        try:
            with open(os.path.join(tasks, task, "comm"), encoding="ascii") as file:
                names.add(file.read().strip())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return names


class Signals(Background):
    def test_sigterm_presses_the_power_button(self):
        self.background()
        os.kill(self.pid(), signal.SIGTERM)
        self.assertEqual(self.ended()["reason"], "the guest powered off")

    def test_a_second_signal_ends_it(self):
        self.background()
        self.assertEqual(self.type("web", b"i").stdout.read(2), b">i")
        pid = self.pid()
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        self.assertEqual(self.state("web"), "Running")
        os.kill(pid, signal.SIGINT)
        self.assertEqual(self.ended()["exit_status"], exit_status("SIGNAL") + signal.SIGINT)

    def test_it_survives_its_terminal(self):
        self.background()
        self.assertNotEqual(os.getsid(self.pid()), os.getsid(0))

    def test_threads_have_names(self):
        self.background("--cpus", "2")
        self.assertLessEqual({"vcpu0", "vcpu1", "loop", "api", "console", "signals"}, thread_names(self.pid()))

    def test_what_is_granted_ahead_needs_a_second_processor(self):
        allowed = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, allowed)
        self.background("--engine", "dbt", name="any")
        self.assertEqual("ahead" in thread_names(self.pid("any")), len(allowed) > 1)
        os.sched_setaffinity(0, {min(allowed)})
        self.background("--engine", "dbt", name="one")
        self.assertNotIn("ahead", thread_names(self.pid("one")))


class Services(Background):
    def test_readiness_is_told(self):
        for abstract in (False, True):
            path = "\0doppel-test-%d" % os.getpid() if abstract else os.path.join(self.folder, "notify")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(path)
                manager.settimeout(SECONDS)
                self.environment["NOTIFY_SOCKET"] = path.replace("\0", "@")
                process = self.start(name="web")
                self.assertIn("READY=1", manager.recv(4096).decode().splitlines())
                process.stdin.write(b"q")
                process.stdin.flush()
                self.assertIn("STOPPING=1", manager.recv(4096).decode().splitlines())
                process.wait(SECONDS)

    def test_an_activated_socket_is_served(self):
        path = os.path.join(self.folder, "activated")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            # LISTEN_PID must be the server's own: a shell that becomes it knows.
            script = "exec 3<&%d; LISTEN_FDS=1 LISTEN_PID=$$ exec %s serve" % (listener.fileno(), DOPPEL)
            process = subprocess.Popen(["sh", "-c", script], pass_fds=[listener.fileno()], env=self.environment)
            self.processes.append(process)
        connection = UnixConnection(path)
        self.assertEqual(self.ask(connection, "GET", "/api/v1/vmm.ping", status=200)[1]["pid"], process.pid)
        self.ask(connection, "PUT", "/api/v1/vmm.shutdown", status=204)
        self.assertEqual(process.wait(SECONDS), exit_status("DONE"))
        self.assertTrue(os.path.exists(path))       # the service manager's, not ours to remove

    def test_a_control_socket_by_path_or_descriptor(self):
        path = os.path.join(self.folder, "socket")
        for argument in (path, "path=" + path):
            process = subprocess.Popen([DOPPEL, "run", "--api-socket", argument], env=self.environment)
            self.processes.append(process)
            wait_until("there is a socket", lambda: os.path.exists(path))
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            self.assertIn("Address already in use", self.doppel("serve", "--api-socket", path, status="USAGE"))
            self.ask(UnixConnection(path), "PUT", "/api/v1/vmm.shutdown", status=204)
            self.assertEqual(process.wait(SECONDS), exit_status("DONE"))
            self.assertFalse(os.path.exists(path))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            process = subprocess.Popen([DOPPEL, "serve", "--api-socket", "fd=%d" % listener.fileno()], pass_fds=[listener.fileno()],
                                       env=self.environment)
            self.processes.append(process)
            self.ask(UnixConnection(path), "PUT", "/api/v1/vmm.shutdown", status=204)
            self.assertEqual(process.wait(SECONDS), exit_status("DONE"))
        # Nobody listens there any more: it is taken over.
        process = subprocess.Popen([DOPPEL, "serve", "--api-socket", path], env=self.environment)
        self.processes.append(process)
        wait_until("the socket is served", lambda: self.served(path))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(SECONDS), exit_status("SIGNAL") + signal.SIGTERM)
        self.assertIn("not a listening", self.doppel("serve", "--api-socket", "fd=0", status="USAGE"))
        self.assertIn("not a descriptor", self.doppel("serve", "--api-socket", "fd=x", status="USAGE"))

    def served(self, path):
        try:
            return self.ask(UnixConnection(path), "GET", "/api/v1/vmm.ping")[0] == 200
        except OSError:
            return False


class Completion(Case):
    def test_names_complete_in_the_shell(self):
        self.start(name="web-one")
        self.start(name="web-two")
        script = self.doppel("help", "--completion", "bash")
        ask = "COMP_WORDS=(%s stop web-t); COMP_CWORD=2; _doppel; echo \"${COMPREPLY[*]}\"" % DOPPEL
        done = subprocess.run(["bash", "-c", script + "\n" + ask], stdout=subprocess.PIPE, text=True, env=self.environment, check=True)
        self.assertEqual(done.stdout, "web-two\n")

    def test_every_command_is_in_the_man_page_and_in_help(self):
        with open(os.path.join(os.path.dirname(__file__), "..", "..", "src", "cli", "commands.def"), encoding="utf-8") as file:
            names = re.findall(r"^COMMAND\((\w+),", file.read(), re.MULTILINE)
        self.assertGreater(len(names), 15)
        manual, overview = self.doppel("help", "--man"), self.doppel("help")
        for name in names:
            self.assertIn("\\fB%s\\fR" % name, manual)
            self.assertRegex(overview, r"(?m)^  %s " % name)
            self.assertIn("usage: doppel %s" % name, self.doppel("help", name))


main(__name__)

"""Doppel as a test of its control socket sees it: commands, machines that run, requests."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
DOPPEL = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else os.path.join(ROOT, "build", "doppel")

# Much longer than anything here takes on a quiet machine: the limits are for busy ones.
SECONDS = 60


def exit_status(name):
    """An exit status of doppel, from the one list of them."""
    with open(os.path.join(ROOT, "src", "cli", "exit_status.def"), encoding="utf-8") as file:
        return int(re.search(r"^EXIT_STATUS\(%s, (\d+)," % name, file.read(), re.MULTILINE)[1])


def assemble(folder):
    """The test guest as a flat binary."""
    image = os.path.join(folder, "guest.bin")
    subprocess.run(["gcc", "-m16", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x7c00,--build-id=none,--oformat=binary",
                    os.path.join(HERE, "guest.S"), "-o", image], check=True)
    return image


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path, timeout=SECONDS):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # A long path does not fit in a Unix address; its directory as a descriptor does.
        folder = os.open(os.path.dirname(self.path), os.O_PATH)
        try:
            self.sock.connect("/proc/self/fd/%d/%s" % (folder, os.path.basename(self.path)))
        finally:
            os.close(folder)


def wait_until(what, condition, seconds=SECONDS):
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError("not within %d s: %s" % (seconds, what))
        time.sleep(0.02)


class Case(unittest.TestCase):
    """A test with a runtime directory of its own; whatever it leaves running ends with it."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="doppel-api-")
        self.runtime = os.path.join(self.folder, "run")
        os.mkdir(self.runtime, 0o700)
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=self.runtime)
        for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            self.environment.pop(name, None)
        self.image = assemble(self.folder)
        self.processes = []

    def tearDown(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for file in (process.stdin, process.stdout):
                if file:
                    file.close()
        for machine in self.ps():
            if "pid" in machine:
                os.kill(machine["pid"], signal.SIGKILL)
        subprocess.run(["rm", "-rf", self.folder], check=True)

    # --- commands ---

    def doppel(self, *words, status="DONE", **how):
        """Runs a command to its end, checks its exit status and returns what it printed, both outputs."""
        done = subprocess.run([DOPPEL, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=self.environment, timeout=4 * SECONDS, check=False, **how)
        self.assertEqual(done.returncode, exit_status(status), "doppel %s: %s" % (" ".join(words), done.stdout))
        return done.stdout

    def ps(self):
        return json.loads(self.doppel("ps", "--json"))

    def state(self, name):
        for machine in self.ps():
            if machine["name"] == name:
                return machine["state"]
        return None

    # --- machines ---

    def guest(self):
        """Options that start the test guest."""
        return ["--memory", "16M", "--no-rng", "--boot", "flat=0x7c00", "--kernel", self.image]

    def firmware(self):
        """The test guest as a firmware image: what a VmConfig can name."""
        path = os.path.join(self.folder, "firmware.bin")
        with open(self.image, "rb") as guest, open(path, "wb") as file:
            file.write(guest.read().ljust(0xFFF0, b"\0") + b"\xE9\x0D\x00".ljust(16, b"\0"))    # at FFF0: JMP 0000
        return path

    def start(self, *options, name=None, ready=b">", **how):
        """`doppel run` in the foreground with the test guest, up to its first byte on the console."""
        words = [DOPPEL, "run", *(["--name", name] if name else []), *self.guest(), *options]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   env=self.environment, **how)
        self.processes.append(process)
        if ready:
            self.assertEqual(process.stdout.read(1), ready)
        return process

    def file(self, name, file):
        return os.path.join(self.runtime, "doppel", name, file)

    # --- requests ---

    def connect(self, name):
        return UnixConnection(self.file(name, "api.sock"))

    def ask(self, name, method, path, body=None, status=None):
        """One request; returns status and body, parsed."""
        connection = self.connect(name) if isinstance(name, str) else name
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if isinstance(name, str):
            connection.close()
        if status is not None:
            self.assertEqual(answer.status, status, "%s %s: %s" % (method, path, text))
        return answer.status, json.loads(text) if text else None


def main(module):
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[module])
    outcome = unittest.TextTestRunner(verbosity=2).run(suite)
    bad = len(outcome.failures) + len(outcome.errors)
    print("%d passed, %d failed, %d skipped" % (outcome.testsRun - bad - len(outcome.skipped), bad, len(outcome.skipped)))
    sys.exit(1 if bad else 0)

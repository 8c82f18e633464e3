"""A doppel process as a test sees it: started, watched on its console, typed to, waited for."""
import os
import re
import selectors
import signal
import socket
import subprocess
import termios
import time
import tty

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOPPEL = os.environ.get("DOPPEL", os.path.join(ROOT, "build", "doppel"))

ENGINE = os.environ.get("DOPPEL_ENGINE", "dbt")     # where a test asks for none

# One boot on the interpreter takes well under a minute on a quiet machine; these limits are for busy ones.
TIMEOUT_FACTOR = float(os.environ.get("DOPPEL_TIMEOUT_FACTOR", "1"))
BOOT_SECONDS = 300 * TIMEOUT_FACTOR

# An end of the output that is no end of a line is taken for one when nothing has come for so long.
QUIET_SECONDS = 1

# What programs send to a terminal to colour, move and ask it.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78]")

TIED = ["setpriv", "--pdeathsig", "KILL"]     # no machine outlives a test run that was killed


class Failure(Exception):
    """The machine did not do what the test asks for."""


class Skip(Exception):
    """The test cannot be run here; the text says why."""


def exit_status(name):
    """An exit status of doppel, from the one list of them."""
    with open(os.path.join(ROOT, "src", "cli", "exit_status.def"), encoding="utf-8") as file:
        return int(re.search(r"^EXIT_STATUS\(%s, (\d+)," % name, file.read(), re.MULTILINE)[1])


class Machine:
    """
    One `doppel run`, with restore=DIRECTORY a `doppel restore`, with console=NAME the console of one in the background, or with
    program=COMMAND another program to compare with. With terminal=True its console is a pseudoterminal, else a pair of pipes.
    """

    def __init__(self, log_path, *options, terminal=False, name="", restore=None, console=None, program=None, environment=None):
        verb = ["restore", restore] if restore else ["console", console] if console else ["run"]
        engine = ["--engine", ENGINE] if verb == ["run"] and "--engine" not in options else []
        self.command = program or [DOPPEL, *verb, *engine, *[str(option) for option in options]]
        self.name = name
        self.seen = ""          # console output that no expectation has consumed yet
        self.log = open(log_path, "ab")
        self.log.write(("$ " + " ".join(self.command) + "\n").encode())
        self.log.flush()
        self.terminal = None
        if terminal:
            self.terminal, other = os.openpty()
            self.process = subprocess.Popen(TIED + self.command, stdin=other, stdout=other, stderr=other,
                                            start_new_session=True, env=environment)
            self.slave = other  # kept open: what the process leaves behind in it is looked at
            self.input = self.output = self.terminal
        else:
            self.process = subprocess.Popen(TIED + self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.STDOUT, start_new_session=True, env=environment)
            self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.output, selectors.EVENT_READ)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.selector.close()
        for file in (self.process.stdin, self.process.stdout, self.log):
            if file:
                file.close()
        if self.terminal is not None:
            os.close(self.terminal)
            os.close(self.slave)

    def read(self, seconds):
        """Adds what arrives within the time to `seen`. False: the output has ended."""
        if not self.selector.select(max(0, seconds)):
            return True
        try:
            data = os.read(self.output, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.log.write(data)
        self.log.flush()
        self.seen = ESCAPES.sub("", self.seen + data.decode(errors="replace")).replace("\r", "")
        return bool(data)

    def ended(self):
        return self.terminal is not None and self.process.poll() is not None

    def expect(self, pattern, seconds=BOOT_SECONDS):
        """Waits for a match of the pattern, consumes the output up to its end and returns the match."""
        limit = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.seen, re.MULTILINE)
            if match and not (pattern.endswith("$") and self.line_goes_on(match)):
                self.seen = self.seen[match.end():]
                return match
            if re.search(r"Kernel panic - not syncing", self.seen):
                raise Failure("the guest's kernel panicked before it printed /%s/" % pattern)
            left = limit - time.monotonic()
            if left <= 0:
                raise Failure("no /%s/ within %d s; the last line is %r" % (pattern, seconds, self.last_line()))
            if self.ended() or not self.read(min(left, 1)):
                self.read(0)
                if not re.search(pattern, self.seen, re.MULTILINE):
                    raise Failure("ended with status %s before it printed /%s/; the last line is %r"
                                  % (self.process.wait(), pattern, self.last_line()))

    def line_goes_on(self, match):
        """Where the match ends with all that was read, which is no end of a line: whether more comes soon."""
        known = self.seen
        return match.end() == len(known) and self.read(QUIET_SECONDS) and self.seen != known

    def last_line(self):
        lines = self.seen.strip().splitlines()
        return lines[-1] if lines else ""

    def send(self, text):
        os.write(self.input, text.encode())

    def command_line(self, text, answer, seconds=60):
        """Types a command into the guest's shell and waits for its answer, which the echo must not look like."""
        self.send(text + "\n")
        return self.expect(answer, seconds)

    def result(self, name, seconds=BOOT_SECONDS):
        """Waits for the guest's own verdict on one of the tests in tools/guest/init."""
        match = self.expect(r"^DOPPEL-TEST %s (ok|fail|skip)\b ?(.*)$" % re.escape(name), seconds)
        if match[1] != "ok":
            raise Failure("in the guest: %s %s: %s" % (name, match[1], match[2]))
        return match[2]

    def end(self, status, seconds=60):
        """Waits until the process has ended and checks its exit status."""
        limit = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > limit:
                raise Failure("still running %d s after its end was expected; the last line is %r"
                              % (seconds, self.last_line()))
            if not self.read(0.1):
                time.sleep(0.05)
        while self.seen is not None and self.selector.select(0) and self.read(0):
            pass
        if self.process.returncode != status:
            raise Failure("exit status %d, not %d; the last line is %r"
                          % (self.process.returncode, status, self.last_line()))

    def raw_mode(self):
        """Whether the terminal is in raw mode now."""
        return not termios.tcgetattr(self.slave)[tty.LFLAG] & (termios.ICANON | termios.ECHO)


class Monitor:
    """A client of a run's monitor socket."""

    PROMPT = "(doppel) "

    def __init__(self, path, seconds=30):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.socket.connect(path)
                return
            except (FileNotFoundError, ConnectionRefusedError):     # a machine that was just started may not listen yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def read(self):
        text = ""
        while not text.endswith(self.PROMPT):
            data = self.socket.recv(65536)
            if not data:
                raise Failure("the monitor closed the connection after %r" % text)
            text += data.decode(errors="replace").replace("\r", "")
        return text

    def snapshot(self, *words):
        """Takes a snapshot: its directory, and its parent if it has one."""
        answer = self.ask("snapshot " + " ".join(words))
        if not answer.startswith("done"):
            raise Failure("no snapshot: %s" % answer.splitlines()[0])

    def ask(self, command):
        """Sends a command and returns what the monitor says."""
        self.socket.sendall((command + "\n").encode())
        return self.read()

#!/usr/bin/env python3
"""Clients of the control socket that mean no good: slow, huge, half, many, random. Whatever they do, the next honest client is answered."""
import array
import json
import os
import random
import socket
import threading

from harness import SECONDS, Case, UnixConnection, main, wait_until

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n\r\n"


class Hostile(Case):
    def setUp(self):
        super().setUp()
        self.doppel("serve", "-d", "--name", "vm")
        self.pid = self.ps()[0]["pid"]

    def tearDown(self):
        try:
            self.assertEqual(self.ask("vm", "GET", "/api/v1/vmm.ping")[1]["pid"], self.pid)
        finally:
            super().tearDown()

    def open(self):
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(SECONDS)
        line.connect(self.file("vm", "api.sock"))
        return line

    def answer(self, data, shut=False):
        """All that comes back for these bytes, until the server closes or we have a whole answer."""
        with self.open() as line:
            try:
                line.sendall(data)
                if shut:
                    line.shutdown(socket.SHUT_WR)
            except BrokenPipeError:
                pass            # refused before all of it was sent
            return self.read(line)

    @staticmethod
    def read(line):
        text = b""
        while b"\r\n\r\n" not in text:
            try:
                piece = line.recv(65536)
            except ConnectionResetError:
                return text
            if not piece:
                return text
            text += piece
        head, body = text.split(b"\r\n\r\n", 1)
        length = int(dict(row.split(": ", 1) for row in head.decode().split("\r\n")[1:]).get("Content-Length", 0))
        while len(body) < length:
            body += line.recv(65536)
        return text

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    def test_a_half_request_is_answered_by_a_time_out(self):
        with self.open() as slow, self.open() as slower:
            slow.sendall(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            slower.sendall(b"G")
            for line in (slow, slower):
                self.assertTrue(self.read(line).startswith(b"HTTP/1.1 408 "))
                self.assertEqual(line.recv(1), b"")

    def test_a_drip_does_not_buy_time(self):
        with self.open() as line:
            done = threading.Event()

            def drip():
                while not done.wait(0.5):
                    try:
                        line.sendall(b"x")
                    except OSError:
                        return

            line.sendall(b"GET /")
            thread = threading.Thread(target=drip)
            thread.start()
            answer = self.read(line)
            done.set()
            thread.join()
            self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), answer)

    def test_half_requests_that_hang_up(self):
        for cut in range(1, len(PING)):
            self.assertEqual(self.answer(PING[:cut], shut=True), b"")

    def test_sizes_are_bounded(self):
        self.assertIn(b" 413 ", self.answer(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n"))
        self.assertIn(b" 413 ", self.answer(b"PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" +
                                            b"10000\r\n" .join([b""] + [b"x" * 65536 + b"\r\n"] * 20)))
        self.assertIn(b" 431 ", self.answer(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100000))
        self.assertIn(b" 404 ", self.answer(b"GET /" + b"a" * 1000 + b" HTTP/1.1\r\n\r\n"))

    def test_deep_json(self):
        for text in (b"[" * 500000, b'{"a":' * 100000, b'{"payload":' + b'{"x":' * 2000 + b"1" + b"}" * 2000 + b"}"):
            self.assertIn(b" 400 ", self.answer(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(text) + text))

    def test_many_connections(self):
        idle = [self.open() for _ in range(200)]
        for _ in range(20):
            self.assertEqual(self.ask("vm", "GET", "/api/v1/vmm.ping")[0], 200)
        for line in idle:
            line.close()
        wait_until("their descriptors are closed", lambda: self.descriptors() < 40)

    def test_many_that_are_busy(self):
        busy = [self.open() for _ in range(64)]
        for line in busy:
            try:
                line.sendall(b"GET /api")
            except BrokenPipeError:
                pass            # one too many: it was answered 503
        for line in busy:
            line.close()
        self.assertEqual(self.ask("vm", "GET", "/api/v1/vmm.ping")[0], 200)

    def test_requests_in_a_row_on_one_connection(self):
        with self.open() as line:
            line.sendall(PING * 200)
            line.shutdown(socket.SHUT_WR)
            text = b""
            while piece := line.recv(65536):
                text += piece
        self.assertEqual(text.count(b"HTTP/1.1 200 OK"), 200)

    def test_a_client_that_reads_nothing(self):
        with self.open() as line:
            line.setblocking(False)
            try:
                while True:
                    line.send(PING * 100)
            except BlockingIOError:
                pass
            self.assertEqual(self.ask("vm", "GET", "/api/v1/vmm.ping")[0], 200)

    def test_descriptors_are_closed(self):
        before = self.descriptors()
        with self.open() as line:
            for _ in range(50):
                ends = socket.socketpair()
                descriptors = array.array("i", [ends[0].fileno()] * 20)
                line.sendmsg([PING], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
                self.assertIn(b" 200 ", self.read(line))
                for end in ends:
                    end.close()
        wait_until("what was sent along is closed", lambda: self.descriptors() <= before)

    def test_what_is_attached_must_be_a_stream_socket(self):
        body = json.dumps({"backlog": 1 << 62}).encode()
        head = b"PUT /doppel/v1/console HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        with self.open() as line, open("/dev/null", "rb") as null:
            line.sendmsg([head + body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()]))])
            self.assertIn(b" 409 ", self.read(line))

    def test_expect_continue(self):
        with self.open() as line:
            line.sendall(b"PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            self.assertEqual(line.recv(25), b"HTTP/1.1 100 Continue\r\n\r\n")
            line.sendall(b"{}")
            self.assertIn(b" 400 ", self.read(line))

    def test_everything_at_once(self):
        """Several clients that drive one machine without regard for each other."""
        config = {"memory": {"size": 16 << 20}, "payload": {"firmware": self.deaf_firmware()}}
        problems = []

        def drive(seed):
            chooser = random.Random(seed)
            for _ in range(60):
                verb = chooser.choice(("create", "boot", "boot", "pause", "resume", "reboot", "shutdown", "delete", "info", "counters",
                                       "nmi", "power-button"))
                connection = UnixConnection(self.file("vm", "api.sock"))
                method = "GET" if verb in ("info", "counters") else "PUT"
                connection.request(method, "/api/v1/vm." + verb, json.dumps(config) if verb == "create" else None)
                status = connection.getresponse().status
                connection.close()
                if status not in (200, 204, 404, 405):
                    problems.append((verb, status))

        threads = [threading.Thread(target=drive, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(problems, [])

    def deaf_firmware(self):
        """Firmware that does nothing at all: JMP to itself at the reset vector."""
        path = os.path.join(self.folder, "deaf.bin")
        with open(path, "wb") as file:
            file.write(b"\0" * 0xFFF0 + b"\xEB\xFE".ljust(16, b"\0"))
        return path


main(__name__)

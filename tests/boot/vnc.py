"""A VNC client, as RFC 6143 has it: raw pixels, keys, the pointer."""
import socket
import struct
import subprocess

from machine import Failure


class Vnc:
    """A connection to a server on a Unix socket. `pixels` is the screen: a line of bytes B, G, R, x for each row."""

    def __init__(self, path, seconds=30):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(path)
        self.updated = 0                # pixels in all updates so far
        version = self.take(12)
        if not version.startswith(b"RFB 003."):
            raise Failure("the server begins with %r" % version)
        self.socket.sendall(b"RFB 003.008\n")
        types = self.take(self.take(1)[0])
        if 1 not in types:
            raise Failure("the server wants security of types %r" % list(types))
        self.socket.sendall(b"\x01")
        if self.number(4):
            raise Failure("the server refuses: %r" % self.take(self.number(4)))
        self.socket.sendall(b"\x01")    # others may watch, too
        self.size(*struct.unpack(">HH", self.take(4)))
        self.take(16)
        self.name = self.take(self.number(4)).decode()
        self.socket.sendall(struct.pack(">BxxxBBBBHHHBBBxxx", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        self.socket.sendall(struct.pack(">BxHii", 2, 2, 0, -223))      # raw, and the screen's new size
        self.request(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def take(self, count):
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionError as error:
                raise Failure("the VNC server closed the connection: %s" % error) from error
            if not more:
                raise Failure("the VNC server closed the connection")
            data += more
        return data

    def number(self, count):
        return int.from_bytes(self.take(count), "big")

    def size(self, width, height):
        self.width, self.height = width, height
        self.pixels = [bytearray(4 * width) for _ in range(height)]

    def request(self, incremental=True):
        self.socket.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def rectangle(self):
        x, y, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
        if encoding == -223:
            self.size(width, height)
            return
        if encoding:
            raise Failure("a rectangle comes in encoding %d, which nobody asked for" % encoding)
        self.updated += width * height
        for row in range(y, y + height):
            self.pixels[row][4 * x:4 * (x + width)] = self.take(4 * width)

    def update(self, seconds):
        """Takes one update and asks for the next. False: none came in time."""
        self.socket.settimeout(seconds)
        try:
            kind = self.take(1)[0]
        except TimeoutError:
            return False
        self.socket.settimeout(30)
        if kind:
            raise Failure("the server sends a message of type %d" % kind)
        for _ in range(struct.unpack(">xH", self.take(3))[0]):
            self.rectangle()
        self.request()
        return True

    def key(self, keysym, down):
        self.socket.sendall(struct.pack(">BBxxI", 4, down, keysym))

    def type(self, text):
        """Keys as a viewer sends them: the characters alone."""
        for character in text:
            for down in (True, False):
                self.key(0xFF0D if character == "\n" else ord(character), down)
            self.update(0.03)

    def pointer(self, x, y, buttons=0):
        self.socket.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    def lines(self):
        """The screen's rows of pixels, three bytes for each: red, green, blue."""
        rows = []
        for line in self.pixels:
            row = bytearray(3 * self.width)
            row[0::3], row[1::3], row[2::3] = line[2::4], line[1::4], line[0::4]
            rows.append(bytes(row))
        return rows


def snapshot(port, path, password_file=None):
    """A picture by vncsnapshot, a client that is not ours. Its exit status and what it says."""
    done = subprocess.run(["vncsnapshot", "-quiet", *(["-passwd", password_file] if password_file else []), "127.0.0.1:%d" % (port - 5900), path],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    return done.returncode, done.stdout

"""The screen and its input, as people and programs reach them."""
import os
import socket
import subprocess
import time

import vnc
from cases import case
from cases_firmware import boot_sector, cells, reads
from machine import DOPPEL, Failure, Skip, exit_status


def need_vnc(test):
    """Skips where Doppel was built without libvncserver."""
    said = subprocess.run([DOPPEL, "run", "--vnc", "unix:x", "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    if "without VNC" in said.stderr:
        raise Skip(said.stderr.strip())


def viewer(machine, path):
    while not os.path.exists(path):
        machine.read(0.1)
    return vnc.Vnc(path)


def sees(screen, text, seconds=120):
    limit = time.monotonic() + seconds
    while not any(reads(row, text) for row in cells(screen.lines(), screen.width, screen.height)):
        if time.monotonic() > limit:
            raise Failure("the screen never shows %r" % text)
        screen.update(0.5)


@case("a boot sector's output is seen by VNC, only what changed is sent, and keys typed there arrive")
def vnc_screen(test):
    need_vnc(test)
    path = test.path("vnc")
    with test.machine(boot_sector(test), "--vnc", "unix:" + path) as machine:
        with viewer(machine, path) as screen:
            sees(screen, "the second sector was read")
            if os.stat(path).st_mode & 0o077:
                raise Failure("others than its owner may use the socket")
            while screen.update(1):
                pass
            before = screen.updated
            screen.type("G")            # Shift comes with it: the guest's keyboard needs it for this character
            sees(screen, "key G")
            if not 0 < screen.updated - before < screen.width * screen.height // 10:
                raise Failure("%d pixels were sent for one line of text" % (screen.updated - before))
        machine.end(exit_status("DONE"))
        if os.path.exists(path):
            raise Failure("the socket is still there")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def obscured(test, password):
    """A password file as VNC viewers keep it: DES with a key that all know, its bytes' bits mirrored (RFC 6143 §7.2.2)."""
    def mirrored(data):
        return bytes(int(format(byte, "08b")[::-1], 2) for byte in data)
    key = mirrored(bytes([23, 82, 107, 6, 35, 78, 88, 7])).hex()
    path = test.path("password-" + password)
    done = subprocess.run(["openssl", "enc", "-des-ede3", "-K", 3 * key, "-nopad"], input=password.ljust(8, "\0").encode(),
                          stdout=subprocess.PIPE, check=True)
    with open(path, "wb") as file:
        file.write(done.stdout)
    return path


@case("a VNC viewer that is not ours gets a picture with the password, and none with another")
def vnc_password(test):
    need_vnc(test)
    port, plain, picture = free_port(), test.path("plain"), test.path("screen.jpg")
    with open(plain, "w", encoding="ascii") as file:
        file.write("secret\n")
    with test.machine(boot_sector(test), "--vnc", "127.0.0.1:%d,password=%s" % (port, plain), "--display", "vga") as machine:
        limit = time.monotonic() + 60
        while True:
            status, said = vnc.snapshot(port, picture, obscured(test, "secret"))
            if not status:
                break
            if time.monotonic() > limit:
                raise Failure("vncsnapshot ends with %d: %s" % (status, said))
            machine.read(0.5)
        with open(picture, "rb") as file:
            if file.read(3) != b"\xff\xd8\xff":
                raise Failure("vncsnapshot made no JPEG picture")
        status, said = vnc.snapshot(port, picture + "2", obscured(test, "secreT"))
        if not status or os.path.exists(picture + "2"):
            raise Failure("a wrong password is taken: %s" % said)


@case("a VNC address, password or display that cannot be is told in one sentence")
def vnc_bad_input(test):
    need_vnc(test)
    path = boot_sector(test)
    for options, text in ((["--vnc", "0.0.0.0:1"], "anybody who reaches 0.0.0.0"), (["--vnc", ":x"], "is not where a VNC server can listen"),
                          (["--vnc", ":1,password=/nowhere/file"], "cannot read the password in /nowhere/file"),
                          (["--vnc", "unix:/nowhere/vnc"], "cannot listen on the socket /nowhere/vnc"),
                          (["--vnc", ":1", "--display", "none"], "--vnc needs a display")):
        done = subprocess.run([DOPPEL, "run", path, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60,
                              check=False)
        if done.returncode != exit_status("USAGE") or text not in done.stderr or done.stderr.count("\n") != 1:
            raise Failure("%s: status %d, and it says %r" % (options, done.returncode, done.stderr))

"""The screen, its input, and other hardware of a PC, as people, programs and stock drivers reach them."""
import contextlib
import os
import random
import shutil
import socket
import subprocess
import time

import cases_firmware
import vnc
from cases import asset, case
from cases_firmware import boot_sector, cells, monitor_of, reads, shows
from machine import BOOT_SECONDS, DOPPEL, TIED, Failure, Monitor, Skip, exit_status


def need_vnc(test):
    """Skips where Doppel was built without libvncserver."""
    said = subprocess.run([DOPPEL, "run", "--vnc", "unix:x", "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    if "without VNC" in said.stderr:
        raise Skip(said.stderr.strip())


def viewer(machine, path):
    while not os.path.exists(path):
        if machine.process.poll() is not None:
            raise Failure("it ended before there was a VNC server")
        machine.read(0.1)
    return vnc.Vnc(path)


def last_words(path, lines=4):
    """What a program said last, for a failure's text."""
    with open(path, encoding="utf-8", errors="replace") as file:
        said = [line.strip() for line in file if line.strip()]
    return " / ".join(said[-lines:]) or "nothing"


def sees(screen, text, seconds=BOOT_SECONDS, meanwhile=lambda: None):
    """Waits for a row of the text. Of VGA's text modes characters are 9 wide, of Linux's graphical console 8."""
    limit = time.monotonic() + seconds
    while not any(reads(row, text) for row in cells(screen.lines(), screen.width, screen.height, 9 if screen.width == 720 else 8)):
        if time.monotonic() > limit:
            raise Failure("the screen never shows %r" % text)
        meanwhile()
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
            screen.type("q")
        machine.end(exit_status("DONE"))
        if os.path.exists(path):
            raise Failure("the socket is still there")


@case("a viewer that reads nothing for seconds, in the midst of a picture, gets the rest of it", long=True)
def vnc_slow_viewer(test):
    need_vnc(test)
    path = test.path("vnc")
    with test.machine(boot_sector(test), "--vnc", "unix:" + path) as machine:
        with viewer(machine, path) as screen:
            sees(screen, "the second sector was read")
            screen.request(False)       # more than the socket holds
            time.sleep(8)
            screen.type("G")
            sees(screen, "key G")
            screen.type("q")
        machine.end(exit_status("DONE"))


def free_port():
    """One that is free now, and not of those that the host gives to whoever asks for any: other tests do, until it is used."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as given:
        first, last = map(int, given.read().split())
    ports = [port for port in range(10000, 65536) if not first <= port <= last] or range(10000, 65536)
    for port in random.sample(ports, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):       # it is taken: another one
            probe.bind(("127.0.0.1", port))
            return port
    raise Failure("a hundred ports of 127.0.0.1 are taken")


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


@contextlib.contextmanager
def x_server(test):
    """
    A screen of X that nobody sees, and what its clients need to find it, with a home of their own. Xvfb tells its number when it takes clients.
    Without -noreset it would start anew whenever its last client goes, and lose one that connects just then: the viewer, when xdotool ends.
    """
    for program, package in (("Xvfb", "xvfb"), ("xdotool", "xdotool"), ("xtigervncviewer", "tigervnc-viewer")):
        if not shutil.which(program):
            raise Skip("the package %s is not installed" % package)
    number, told = os.pipe()
    with open(test.log + ".xvfb", "wb") as log, \
         subprocess.Popen([*TIED, "Xvfb", "-displayfd", str(told), "-screen", "0", "1024x768x24", "-nolisten", "tcp", "-noreset"],
                          pass_fds=(told,), stdin=subprocess.DEVNULL, stdout=log, stderr=log) as server, open(number, "rb") as file:
        os.close(told)
        try:
            display = file.readline().decode().strip()
            if not display:
                raise Failure("Xvfb does not start; it says: %s" % last_words(log.name))
            yield dict(os.environ, DISPLAY=":" + display, HOME=test.folder)
        finally:
            server.terminate()      # not killed: it removes its socket and its lock, which another one could stumble over


def x_key(environment, key):
    """A key for the viewer's window, once there is one."""
    def xdotool(*words):
        return subprocess.run(["xdotool", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              timeout=60, check=False, env=environment)
    window = xdotool("search", "--onlyvisible", "--name", "^Doppel").stdout.split()
    return bool(window) and xdotool("windowfocus", window[0], "key", key).returncode == 0


@case("TigerVNC's viewer verifies the certificate, gives the password inside of TLS, and keys typed there arrive; who will not encrypt is refused")
def vnc_viewer(test):
    need_vnc(test)
    port, plain, tls, picture, monitor_path = free_port(), test.path("plain"), test.path("tls"), test.path("screen.png"), test.path("monitor")
    with open(plain, "w", encoding="ascii") as file:
        file.write("secret\n")
    with x_server(test) as environment, test.machine(boot_sector(test), "--vnc", "127.0.0.1:%d,password=%s,tls=%s" % (port, plain, tls),
                                                     "--monitor", "socket:" + monitor_path) as machine, monitor_of(machine, monitor_path) as monitor:
        cases_firmware.sees(machine, monitor, picture, "the second sector was read")
        status, said = vnc.snapshot(port, picture + ".jpg", obscured(test, "secret"))
        if not status:
            raise Failure("a viewer without TLS gets a picture: %s" % said)
        viewer_command = ["xtigervncviewer", "-X509CA=" + os.path.join(tls, "server-cert.pem"), "-passwd", obscured(test, "secret"),
                          "-SecurityTypes", "X509Vnc", "-AlertOnFatalError=0", "-ReconnectOnError=0", "127.0.0.1::%d" % port]
        with open(test.log + ".viewer", "wb") as log, subprocess.Popen(TIED + viewer_command, stdin=subprocess.DEVNULL, stdout=log,
                                                                       stderr=log, env=environment) as process:
            def lost(what):
                return Failure("%s; the viewer's status is %s, and it says: %s" % (what, process.poll(), last_words(log.name)))
            try:
                limit = time.monotonic() + BOOT_SECONDS
                while not (x_key(environment, "shift+g") and shows(monitor, picture, "key G")):
                    if process.poll() is not None or time.monotonic() > limit:
                        raise lost("the key never arrives")
                    machine.read(0.5)
                if not x_key(environment, "q"):
                    raise lost("the second key cannot be typed")
                machine.end(exit_status("DONE"), BOOT_SECONDS)
            finally:
                process.kill()


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


@case("a kernel that panics says so through pvpanic, and the machine ends with a status of its own")
def pvpanic(test):
    with test.linux("amd64", append="doppel.more=yes doppel.test=panic") as machine:
        machine.expect("sysrq: Trigger a crash")
        machine.end(exit_status("PANIC"))


@case("a watchdog that Linux's own driver has opened and nobody feeds resets the machine")
def watchdog(test):
    with test.linux("amd64", "--watchdog", "reset", append="doppel.more=yes doppel.test=watchdog") as machine:
        machine.expect("DOPPEL-WATCHDOG i6300ESB timer")
        machine.end(exit_status("REBOOT"))


@case("what --user-data and --ssh-key say is on a volume that cloud-init looks for, and bad files are told")
def cloud_seed(test):
    data, key, cache = test.path("user-data"), test.path("key.pub"), test.path("cache")
    for path, text in ((data, "#cloud-config\nruncmd: [echo, hello]\n"), (key, "# mine\nssh-ed25519 AAAAC3Nz \"me\"@here\n"),
                       (test.path("private"), "-----BEGIN OPENSSH PRIVATE KEY-----\n")):
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    environment = dict(os.environ, XDG_CACHE_HOME=cache, XDG_RUNTIME_DIR=test.folder)
    for options, text in ((["--user-data", "/nowhere/file"], "cannot read the user data in /nowhere/file"),
                          (["--ssh-key", test.path("private")], "is a private key"), (["--ssh-key", data], "there is no public SSH key in")):
        done = subprocess.run([DOPPEL, "run", boot_sector(test), *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              timeout=60, check=False, env=environment)
        if done.returncode != exit_status("USAGE") or text not in done.stderr or done.stderr.count("\n") != 1:
            raise Failure("%s: status %d, and it says %r" % (options, done.returncode, done.stderr))
    with test.linux("cloud", "--disk", test.disk(), "--user-data", data, "--ssh-key", key, "--name", "seed-%d" % os.getpid(),
                    append="doppel.more=yes doppel.test=seed doppel.seed=/dev/vdb", environment=environment) as machine:
        machine.expect(r"^DOPPEL-SEED #cloud-config$")
        machine.expect(r"^DOPPEL-SEED runcmd: \[echo, hello\]$")
        machine.expect(r"^DOPPEL-SEED instance-id: seed-\d+-[0-9a-f]{16}$")
        machine.expect(r"^DOPPEL-SEED local-hostname: seed-\d+$")
        machine.expect(r'^DOPPEL-SEED public-keys: \["ssh-ed25519 AAAAC3Nz \\"me\\"@here"\]$')
        machine.result("seed")
        machine.end(exit_status("DONE"))
    (seed,) = os.listdir(os.path.join(cache, "doppel", "seeds"))
    if os.stat(os.path.join(cache, "doppel", "seeds", seed)).st_mode & 0o077:
        raise Failure("others may read the seed")


CLICK_SEEN = "until dd if=/dev/input/mice bs=3 count=1 2>/dev/null | od -An -tx1 | grep '09 .. ..'; do :; done; echo Clicked-$((6*7))\n"


def use_console(screen):
    """At the shell of the guest's graphical console: types, and clicks where the pointer is."""
    sees(screen, "Enter 'help' for a list of built-in commands.", 2 * BOOT_SECONDS)
    if (screen.width, screen.height) != (1024, 768):
        raise Failure("the screen has %d by %d pixels" % (screen.width, screen.height))
    screen.type('echo "Hello-$((6*7))"\n')
    sees(screen, "Hello-42")
    screen.type(CLICK_SEEN)

    def click():
        for buttons in (1, 0):
            screen.pointer(100, 100, buttons)
    sees(screen, "Clicked-42", meanwhile=click)


@case("Linux's graphical console, keyboard and mouse work through VNC, before and after a snapshot is taken and restored")
def graphical_console(test):
    need_vnc(test)
    path, socket_path, saved = test.path("vnc"), test.path("monitor"), test.path("saved")
    with test.linux("amd64", "--vnc", "unix:" + path, "--monitor", "socket:" + socket_path, append="console=tty0 doppel.more=yes") as machine:
        with viewer(machine, path) as screen:
            use_console(screen)
            with Monitor(socket_path) as monitor:
                monitor.snapshot(saved)
    with test.machine("--vnc", "unix:" + path, restore=saved) as machine, viewer(machine, path) as screen:
        sees(screen, "Hello-42")
        screen.type("echo Again-$((6*7))\n")
        sees(screen, "Again-42")


@case("Linux's own xHCI and HID drivers find a USB keyboard and tablet, which VNC reaches, before and after a snapshot", long=True)
def usb_input(test):
    need_vnc(test)
    path, socket_path, saved = test.path("vnc"), test.path("monitor"), test.path("saved")
    with test.linux("amd64", "--input", "usb", "--vnc", "unix:" + path, "--monitor", "socket:" + socket_path,
                    append="console=tty0 doppel.more=yes") as machine:
        with viewer(machine, path) as screen:
            use_console(screen)
            screen.type("echo $(grep -c Doppel /proc/bus/input/devices) $(grep -q '[1-9].*xhci' /proc/interrupts && echo used)\n")
            sees(screen, "2 used")
            with Monitor(socket_path) as monitor:
                monitor.snapshot(saved)
    with test.machine("--vnc", "unix:" + path, restore=saved) as machine, viewer(machine, path) as screen:
        sees(screen, "2 used")
        screen.type("echo Again-$((6*7))\n")
        sees(screen, "Again-42")


@case("Linux's own USB storage driver writes, flushes and reads a disk, and finds what it wrote at another start", long=True)
def usb_disk(test):
    disk = test.disk(mebibytes=64)
    for tests in ("disk_wait,disk_write,disk_read", "disk_wait,disk_read,filesystem"):
        with test.linux("amd64", "--disk", disk + ",bus=usb", append="doppel.more=yes doppel.disk=/dev/sda doppel.test=" + tests) as machine:
            for name in tests.split(","):
                machine.result(name)
            machine.end(exit_status("DONE"))


@case("Debian's cloud-init takes what --user-data and --ssh-key say, and one logs in by SSH as its default user", long=True)
def cloud_init(test):
    key, data, image, port = test.path("key"), test.path("user-data"), test.path("cloud.img"), free_port()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", os.path.join(asset("system", "cloud"), "image"), image], check=True)
    with open(data, "w", encoding="ascii") as file:
        file.write("#cloud-config\nruncmd: [systemctl start systemd-networkd, 'echo DOPPEL-CLOUD $(hostname) >/dev/ttyS0']\n")
    with test.linux("cloud", "--disk", image, "--user-data", data, "--ssh-key", key + ".pub", "--name", "cloud-%d" % os.getpid(),
                    "--net", "user,hostfwd=tcp:127.0.0.1:%d-:22" % port, memory="1G", append="doppel.more=yes root=/dev/vda",
                    environment=dict(os.environ, XDG_RUNTIME_DIR=test.folder)) as machine:
        machine.expect(r"DOPPEL-CLOUD cloud-\d+", 3 * BOOT_SECONDS)
        machine.expect(r"Datasource DataSourceNoCloud \[seed=/dev/vdb\]", BOOT_SECONDS)
        done = subprocess.run(["ssh", "-i", key, "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                               "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "debian@127.0.0.1", "echo I am $(id -un)"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
        if "I am debian" not in done.stdout:
            raise Failure("ssh ends with %d: %s" % (done.returncode, done.stdout))

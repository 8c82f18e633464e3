"""What a person has on a disk, through firmware."""
import os
import subprocess

from cases import case
from machine import DOPPEL, Failure, exit_status

HERE = os.path.dirname(os.path.abspath(__file__))


def boot_sector(test, name="mbr.img"):
    """A disk with tests/boot/mbr.S on it."""
    path = test.path(name)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x7c00,--oformat=binary,--build-id=none",
                    os.path.join(HERE, "mbr.S"), "-o", path], check=True)
    os.truncate(path, 1 << 20)
    return path


@case("SeaBIOS boots a virtio disk's boot sector, which prints, reads and waits by BIOS calls, on both engines")
def bios_boot_sector(test):
    path = boot_sector(test)
    for engine in ("interp", "dbt"):
        with test.machine(path, "--engine", engine) as machine:
            machine.expect(r"SeaBIOS \(version")
            machine.expect(r"^drive 80$")
            machine.expect(r"^the second sector was read$")
            machine.end(exit_status("DONE"))


@case("firmware that is not there, or is none, is told in one sentence")
def bios_missing(test):
    path = boot_sector(test)
    for name, text in (("/nowhere/bios.bin", "cannot open the firmware '/nowhere/bios.bin'"),
                       (os.path.join(HERE, "mbr.S"), "is no firmware image")):
        done = subprocess.run([DOPPEL, "run", path, "--firmware", name], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, timeout=60, check=False)
        if done.returncode != exit_status("USAGE") or text not in done.stderr or done.stderr.count("\n") != 1:
            raise Failure("status %d, and it says %r" % (done.returncode, done.stderr))

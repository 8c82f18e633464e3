"""Debian's own installer, which answers itself, and what it has installed."""
import gzip
import os
import re
import subprocess
import urllib.error
import urllib.request

from cases import asset, case
from machine import BOOT_SECONDS, Failure, Skip, exit_status

# Answers to all that it would ask (its manual's appendix B, "Automating the installation using preseeding"). The smallest system that
# boots: no tasks, no recommended packages, and the kernel for virtual machines.
ANSWERS = """
d-i debian-installer/locale string en_US.UTF-8
d-i keyboard-configuration/xkb-keymap select us
d-i netcfg/choose_interface select auto
d-i netcfg/get_hostname string installed
d-i netcfg/get_domain string
d-i mirror/country string manual
d-i mirror/http/hostname string %(host)s
d-i mirror/http/directory string %(directory)s
d-i mirror/http/proxy string
d-i passwd/make-user boolean false
d-i passwd/root-password password doppel
d-i passwd/root-password-again password doppel
d-i clock-setup/utc boolean true
d-i clock-setup/ntp boolean false
d-i time/zone string Etc/UTC
d-i partman-auto/disk string /dev/vda
d-i partman-auto/method string regular
d-i partman-auto/choose_recipe select atomic
d-i partman-partitioning/confirm_write_new_label boolean true
d-i partman-basicfilesystems/no_swap boolean false
d-i partman/choose_partition select finish
d-i partman/confirm boolean true
d-i partman/confirm_nooverwrite boolean true
d-i base-installer/install-recommends boolean false
d-i base-installer/kernel/image string linux-image-cloud-amd64
d-i apt-setup/services-select multiselect
d-i apt-setup/cdrom/set-first boolean false
tasksel tasksel/first multiselect
d-i pkgsel/run_tasksel boolean false
d-i pkgsel/upgrade select none
d-i pkgsel/update-policy select none
popularity-contest popularity-contest/participate boolean false
d-i grub-installer/only_debian boolean true
d-i grub-installer/bootdev string /dev/vda
d-i finish-install/reboot_in_progress note
d-i debian-installer/exit/poweroff boolean true
"""

HOURS = 12 * BOOT_SECONDS       # one, on a machine that does nothing else


def mirror():
    """The host and the directory of the Debian mirror that this machine's packages come from."""
    said = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Origin: Debian"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False).stdout
    for line in said.splitlines():
        uri, release = line.split()
        if release == "bookworm" and uri.startswith("http://"):
            host, _, directory = uri[len("http://"):].partition("/")
            return host, "/" + directory.rstrip("/")
    raise Skip("this machine's packages come from no mirror of Debian 12 by HTTP, which is all that the installer speaks without a certificate")


def mirror_lacks_components(host, directory):
    """Whether this machine does not get the first thing either that the installer needs of the mirror."""
    base = "http://%s%s/" % (host, directory)
    try:
        with urllib.request.urlopen(base + "dists/bookworm/main/debian-installer/binary-amd64/Packages.gz", timeout=60) as index:
            place = re.search(r"^Package: libc6-udeb\n(?:.+\n)*?Filename: (.+)$", gzip.decompress(index.read()).decode(), re.MULTILINE)[1]
        with urllib.request.urlopen(urllib.request.Request(base + place, method="HEAD"), timeout=60):
            return False
    except urllib.error.URLError:
        return True


def initrd_with_answers(test, host, directory):
    """The installer's initrd, and behind it an archive with the answers: it looks for /preseed.cfg."""
    path, answers = test.path("initrd"), test.path("preseed.cfg")
    with open(answers, "w", encoding="ascii") as file:
        file.write(ANSWERS % {"host": host, "directory": directory})
    with open(path, "wb") as file:
        with open(asset("initrd", "di-amd64"), "rb") as first:
            data = first.read()
        file.write(data + b"\0" * (-len(data) % 4))
        file.flush()
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=b"preseed.cfg\n", stdout=file, cwd=test.folder, check=True)
    return path


@case("Debian's installer, over the network and by itself, installs Debian 12 on a disk, which then boots through GRUB to a login", long=True)
def debian_install(test):
    host, directory = mirror()
    disk, initrd = test.path("installed.img"), initrd_with_answers(test, host, directory)
    with open(disk, "wb") as file:
        os.truncate(file.fileno(), 3 << 30)
    with test.machine("--memory", "1G", "--engine", "dbt", "--net", "user", "--disk", disk, "--kernel", asset("kernel", "di-amd64"), "--initrd", initrd,
                      "--append", "console=ttyS0 auto=true priority=critical DEBIAN_FRONTEND=text TERM=dumb --- console=ttyS0") as machine:
        machine.expect("Configuring the network with DHCP", 2 * BOOT_SECONDS)
        machine.expect("Loading additional components", 2 * BOOT_SECONDS)
        if machine.expect(r"Downloading a file failed|Detecting disks", HOURS)[0].startswith("Downloading"):
            if not mirror_lacks_components(host, directory):
                raise Failure("the installer cannot download what this machine can")
            raise Skip("the installer came up to the mirror %s, which lacks components that its index names" % host)
        for stage in ("Installing the base system", "GRUB boot loader", "Finishing the installation"):
            machine.expect(stage, HOURS)
        machine.end(exit_status("DONE"), HOURS)
    with test.machine("--memory", "512M", "--engine", "dbt", disk) as machine:
        machine.expect(r"installed login: ", 3 * BOOT_SECONDS)
        machine.send("root\n")
        machine.expect("Password: ")
        machine.send("doppel\n")
        machine.expect(r"root@installed:~# ", BOOT_SECONDS)
        machine.command_line("echo Debian $(cut -d. -f1 /etc/debian_version) on $(findmnt -no SOURCE /)", "^Debian 12 on /dev/vda1$", BOOT_SECONDS)
        machine.send("poweroff\n")
        machine.end(exit_status("DONE"), BOOT_SECONDS)

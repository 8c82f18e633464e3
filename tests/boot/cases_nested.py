"""
Doppel in Doppel: in a guest whose processor has VT-x runs Linux with its kvm-intel, in that this same program with --engine kvm, and in
that a guest of its own. On hosts whose KVM is no such thing this is the proof of that engine.
"""
import hashlib
import os
import shutil
import subprocess

from cases import asset, case
from cases_systems import copy_of_disk, log_in
from machine import BOOT_SECONDS, DOPPEL, ROOT, Failure, Skip, exit_status

GUEST = "--memory 192M --no-reboot --kernel /guest/vmlinuz --initrd /guest/initramfs"
WITH_MWAIT = "i7-7500U,monitor=on"        # then kvm-intel leaves all writes of IA32_TSC_DEADLINE to its user
PROMPT = r"^doppel:\S*# "
LOAD_KVM = "for m in $(cat /lib/kvm/order); do insmod /lib/kvm/$m; done; ls /dev/kvm"


def libraries(program):
    """The program's shared libraries, as its loader finds them."""
    listed = subprocess.run(["ldd", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def initrd(test, programs, files):
    """The hypervisor guest's archive, followed by one with programs in /bin and files (name: path) in /guest: Linux unpacks both."""
    root, path = test.path("root"), test.path("initrd")
    os.makedirs(os.path.join(root, "bin"))
    os.makedirs(os.path.join(root, "guest"))
    for program in programs:
        subprocess.run(["strip", "-o", os.path.join(root, "bin", os.path.basename(program)), program], check=True)
        for library in libraries(program):
            subprocess.run(["cp", "-L", "--parents", library, root], check=True)
    for name, file in files.items():
        shutil.copy(file, os.path.join(root, "guest", name))
    with open(path, "wb") as archive:
        with open(asset("hypervisor"), "rb") as base:
            archive.write(base.read())
        archive.flush()
        subprocess.run("find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0", shell=True, cwd=root, check=True, stdout=archive)
    return path


def hypervisor(test, *options, cpu="i7-7500U", cpus=1, memory="768M", programs=(), files=None):
    """A machine at the prompt of a guest that has a /dev/kvm and this program."""
    machine = test.machine("--memory", memory, "--cpu", cpu, "--cpus", cpus, "--no-reboot", "--kernel", asset("kernel", "cloud"),
                           "--initrd", initrd(test, (DOPPEL, *programs), files or {}), "--append", "console=ttyS0 panic=-1 quiet", *options, terminal=True)
    machine.expect(PROMPT)
    machine.command_line(LOAD_KVM, "^/dev/kvm$", BOOT_SECONDS)
    return machine


FILE = b"".join(b"%d\n" % i for i in range(1, 10000))


def serve_file(machine):
    """A web server with FILE, which the guest's guest finds at 10.0.2.2:8000."""
    machine.command_line("ifconfig lo 127.0.0.1 up; mkdir /tmp/www; seq 1 9999 >/tmp/www/file; httpd -p 127.0.0.1:8000 -h /tmp/www; "
                         "echo served $((1 + 1))", "^served 2$", BOOT_SECONDS)


def boots(machine, options, work="cpu"):
    """One guest of the guest, to its end."""
    machine.send("doppel run --engine kvm %s --append 'console=ttyS0 panic=-1 quiet doppel.test=%s' %s; echo status=$?\n"
                 % (GUEST, work, options))
    for name in work.split(" ")[0].split(","):
        machine.result(name)
    machine.expect(r"^status=%d$" % exit_status("DONE"))
    machine.expect(PROMPT)


def leave(machine):
    machine.send("poweroff -f\n")
    machine.end(exit_status("DONE"), BOOT_SECONDS)


@case("Doppel in Doppel: Linux boots on --engine kvm over Linux' own kvm-intel on emulated VT-x; doctor finds that KVM")
def doppel_in_doppel(test):
    with hypervisor(test) as machine:
        # Fast, or too slow to be the default: on a busy host it may take it for slow.
        machine.command_line("doppel doctor | grep -c -e 'ns for an instruction of a guest' -e 'engine kvm works'", "^1$", BOOT_SECONDS)
        boots(machine, "")
        leave(machine)


@case("the same where the host has MWAIT, and so the guest's guest the TSC deadline timer", long=True)
def doppel_in_doppel_mwait(test):
    with hypervisor(test, cpu=WITH_MWAIT) as machine:
        boots(machine, "")
        leave(machine)


@case("on --engine kvm a guest has two processors, a disk, a network, entropy and a clock", long=True, cpus=2)
def doppel_in_doppel_devices(test):
    with hypervisor(test, cpus=2) as machine:
        serve_file(machine)
        machine.command_line("truncate -s 64M /tmp/disk; echo made", "^made$", BOOT_SECONDS)
        boots(machine, "--cpus 2 --disk /tmp/disk --net user",
              "cpu,smp,memory,clock,entropy,disk_write,filesystem,net doppel.cpus=2 doppel.url=http://10.0.2.2:8000/file")
        leave(machine)


SEABIOS = "/usr/share/seabios/bios-256k.bin"
# bash alone fetches the file: that system has no program for it.
FETCH = (r"until ip route | grep -q ^default; do sleep 1; done; exec 3<>/dev/tcp/10.0.2.2/8000; printf 'GET /file HTTP/1.0\r\n\r\n' >&3; "
         r"sed '1,/^\r*$/d' <&3 | md5sum")


@case("on --engine kvm Debian boots from a virtio disk through SeaBIOS and GRUB to a login, has a network and powers off", long=True)
def doppel_in_doppel_debian(test):
    with hypervisor(test, "--disk", copy_of_disk(test), memory="1G", files={"bios.bin": SEABIOS}) as machine:
        serve_file(machine)
        machine.send("doppel run --engine kvm --memory 512M --firmware /guest/bios.bin --display none --disk /dev/vda --net user; "
                     "echo status=$?\n")
        log_in(machine)
        machine.command_line("echo root on $(findmnt -no SOURCE /)", r"^root on /dev/vda2?$", BOOT_SECONDS)
        machine.command_line(FETCH, "^%s  -$" % hashlib.md5(FILE).hexdigest(), BOOT_SECONDS)
        machine.send("poweroff\n")
        machine.expect(r"^status=%d$" % exit_status("DONE"), BOOT_SECONDS)
        machine.expect(PROMPT)
        leave(machine)


def compare_with_parent(machine, number):
    """A differential snapshot of the guest's guest, and a full one of the same moment, which is the next one's parent."""
    before, now = "/tmp/full%d" % (number - 1), "/tmp/full%d" % number
    machine.command_line("doppel pause inner && doppel snapshot inner /tmp/changed --parent %s && doppel snapshot inner %s && doppel resume inner; "
                         "echo status=$?" % (before, now), "^status=0$", BOOT_SECONDS)
    machine.command_line("doppel snapshot check /tmp/changed && doppel snapshot diff /tmp/changed %s >/tmp/diff; echo status=$?" % now,
                         "^status=[01]$", BOOT_SECONDS)
    machine.command_line("echo $(grep -cE '^(memory|vcpu)' /tmp/diff) differences of $(du -m /tmp/changed | tail -1 | cut -f1) MiB",
                         r"^0 differences of \d+ MiB$", BOOT_SECONDS)
    machine.command_line("rm -r /tmp/changed %s; echo status=$?" % before, "^status=0$")


@case("what a guest has written is known exactly on --engine kvm: a differential snapshot and a full one of the same moment hold the same memory",
      long=True)
def doppel_in_doppel_dirty(test):
    with hypervisor(test, memory="1536M") as machine:
        machine.command_line("doppel run -d --name inner --engine kvm %s && sleep 1 && doppel snapshot inner /tmp/full0; echo status=$?" % GUEST,
                             "^status=0$", BOOT_SECONDS)
        for number in (1, 2, 3):        # as Linux boots it writes more pages than KVM tells of at once
            machine.read(2)
            compare_with_parent(machine, number)
        machine.command_line("doppel stop --force inner; echo status=$?", "^status=0$", BOOT_SECONDS)
        leave(machine)


@case("the guest's guest boots while it is moved among kvm, dbt and interp several times", long=True)
def doppel_in_doppel_engine_switch(test):
    with hypervisor(test, cpu=WITH_MWAIT) as machine:
        machine.send("(for engine in dbt kvm interp kvm dbt interp dbt kvm; do sleep 0.5; "
                     "until doppel monitor inner engine $engine; do sleep 0.5; done; done) >/tmp/switches 2>/dev/null &\n")
        machine.expect(PROMPT)
        boots(machine, "--name inner")
        machine.command_line("cat /tmp/switches | tr '\\n' ' '", r"^engine dbt engine kvm engine interp engine kvm",
                             BOOT_SECONDS)
        leave(machine)


@case("on --engine kvm two processors boot with local APICs that are this program's, as where the host's kernel cannot have them", long=True, cpus=2)
def doppel_in_doppel_board_apics(test):
    with hypervisor(test, cpus=2) as machine:
        machine.command_line("truncate -s 64M /tmp/disk; echo made", "^made$", BOOT_SECONDS)
        boots(machine, "--kvm-irqchip off --cpus 2 --disk /tmp/disk", "cpu,smp,clock,disk_write doppel.cpus=2")
        leave(machine)


# Where both processors of a guest that stands still are, and what their APICs wait for: told when it should long have ended.
INSPECT = (r"(sleep %d; printf 'counters interrupts\nstop\ncpu 0\ninfo registers\ncpu 1\ninfo registers\ninfo irq\ncontinue\n' | "
           "doppel monitor inner) &")


def moves(test, cpu):
    """Two processors of the guest's guest, which is moved all the time."""
    with hypervisor(test, cpus=2) as machine:
        machine.send("(for engine in dbt kvm dbt kvm dbt kvm dbt kvm; do sleep 0.5; "
                     "until doppel monitor inner engine $engine; do sleep 0.5; done; done) >/tmp/switches 2>/dev/null &\n")
        machine.expect(PROMPT)
        machine.send(INSPECT % (BOOT_SECONDS // 2) + "\n")
        machine.expect(PROMPT)
        boots(machine, "--name inner --cpus 2 --cpu " + cpu, "cpu,smp,clock,smp,clock,memory doppel.cpus=2")
        machine.command_line("kill $!; cat /tmp/switches | tr '\\n' ' '", r"^engine dbt engine kvm engine dbt engine kvm", BOOT_SECONDS)
        leave(machine)


@case("two processors of the guest's guest work and sleep while they are moved between kvm and dbt", long=True, cpus=2)
def doppel_in_doppel_switch_smp(test):
    moves(test, "x86-64-v2")


@case("the same where their APICs' timers have no deadline, but count", long=True, cpus=2)
def doppel_in_doppel_switch_count(test):
    moves(test, "x86-64-v2,-tsc-deadline")


@case("a machine with two processors that is saved at work on kvm goes on under dbt, and under kvm", long=True, cpus=2)
def doppel_in_doppel_snapshot(test):
    with hypervisor(test, cpus=2, memory="1536M") as machine:
        machine.command_line("doppel run -d --name inner --engine kvm --cpus 2 --console file:/tmp/console %s --append 'console=ttyS0 panic=-1 quiet "
                             "doppel.test=cpu,smp,clock doppel.cpus=2 doppel.end=shell'; until grep -q 'TEST cpu ok' /tmp/console; do sleep 0.2; done; "
                             "doppel snapshot inner /tmp/kept; doppel stop --force inner; echo status=$?" % GUEST, "^status=0$", 3 * BOOT_SECONDS)
        for engine in "dbt", "kvm":
            machine.send("doppel restore /tmp/kept --engine %s; echo status=$?\n" % engine)
            machine.send("\n")
            machine.command_line("sleep 1; seq 1 2000 | sha256sum | cut -c1-8; taskset -c 1 echo on $((1 + 1)) processors", "^on 2 processors$", BOOT_SECONDS)
            machine.send("poweroff -f\n")
            machine.expect(r"^status=%d$" % exit_status("DONE"), BOOT_SECONDS)
            machine.expect(PROMPT)
        leave(machine)


def built(*names):
    """Programs that the tests' build makes."""
    paths = [os.path.join(os.path.dirname(DOPPEL), "tests", name) for name in names]
    for path in paths:
        if not os.path.exists(path):
            raise Skip("there is no %s; ninja -C build makes it" % os.path.relpath(path, ROOT))
    return paths


# Not tasks32: a fault that KVM's own task switch meets (a bad SS, a bad LDT) is lost, and the guest goes on in a state between the two tasks.
BARE_METAL = {"smoke": "", "paging": "", "events": "", "system": "", "interrupts": "", "kernel_paths": "", "modes32": "", "rings32": "",
              "hostile": "--append sparse --victim 1 --device edu --counted dma_bytes"}


@case("bare-metal guests find on Linux' kvm-intel what the manual says; state moves among the engines", long=True)
def doppel_in_doppel_bare_metal(test):
    programs = built("guest/run_guest", "state/state-engines")
    images = dict(zip(["%s.elf" % name for name in BARE_METAL], built(*["guest/%s.elf" % name for name in BARE_METAL])))
    with hypervisor(test, programs=programs, files=images) as machine:
        for name, options in BARE_METAL.items():
            machine.send("run_guest --engine kvm %s /guest/%s.elf; echo status=$?\n" % (options, name))
            if machine.expect(r"^status=(\d+)$")[1] != "0":
                raise Failure("%s fails" % name)
        machine.send("state-engines; echo status=$?\n")
        if machine.expect(r"^status=(\d+)$")[1] != "0":
            raise Failure("state does not move")
        leave(machine)

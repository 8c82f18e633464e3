"""Where jobs run: natively in the Debian system's tree, or in a guest of Doppel or QEMU with the same system as its disk."""
import collections
import contextlib
import hashlib
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCH = os.path.join(ROOT, "bench")
QEMU = "qemu-system-x86_64"
ENGINES = ("native", "interp", "dbt", "tcg")
JOB_SECONDS = 300               # what a job may take
DISK_MEBIBYTES = 256
GUEST_ADDRESS, HOST_ADDRESS = "10.0.2.15", "10.0.2.2"

# What became of a job. value: its figure, in seconds; mean: the same, as the mean of its parts; host, guest: how long it took by the
# two clocks; waited: for how much of that time it, or that thread of its machine which waited longest, stood in the host's run queue.
Outcome = collections.namedtuple("Outcome", "value mean check status output host guest waited")


def asset(*words):
    return subprocess.run([os.path.join(ROOT, "tools", "asset"), *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def doppel():
    return os.environ.get("DOPPEL", os.path.join(ROOT, "build", "doppel"))


def cache():
    return os.environ.get("DOPPEL_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "doppel")


def in_tree(tree, folder, *command, mounts="", processors=None):
    """The command line that runs a command in the Debian tree, with a copy of the folder as its /tmp/bench."""
    script = ('set -e; for d in dev proc sys; do mount --rbind /$d "$0/$d"; done; mount -t tmpfs tmp "$0/tmp"; '
              'cp -a "$1" "$0/tmp/bench"; ' + mounts + ' shift; tree=$0; exec chroot "$tree" "$@"')
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-m", "-Ur"]
    pin = ["taskset", "-c", processors] if processors else []
    return [*pin, *namespace, "sh", "-c", script, tree, folder, *command]


def programs(system):
    """The folder of compiled programs and of what they work on, made once for what it is made of."""
    sources = [os.path.join(BENCH, folder, name) for folder in ("programs", "work") for name in sorted(os.listdir(os.path.join(BENCH, folder)))]
    key = hashlib.sha256(system.encode())
    for path in [*sources, os.path.join(BENCH, "build-programs")]:
        with open(path, "rb") as file:
            key.update(file.read())
    final = os.path.join(cache(), "bench-programs", key.hexdigest()[:12])
    if not os.path.isdir(final):
        os.makedirs(os.path.dirname(final), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(final)) as stage:
            tree, out = os.path.join(system, "tree"), os.path.join(stage, "out")
            os.mkdir(out)
            bind = 'mkdir "$0/tmp/out"; mount --bind %s "$0/tmp/out";' % out
            subprocess.run(in_tree(tree, BENCH, "/bin/sh", "/tmp/bench/build-programs", "/tmp/out", mounts=bind), check=True)
            with contextlib.suppress(OSError):      # another run was faster
                os.rename(out, final)
    return final


class Stage:
    """A folder with all that the agent needs for a list of jobs, which run beside copies of what is in the folder 'content'."""

    def __init__(self, system, content, folder, jobs, environment):
        self.system, self.folder, self.jobs, self.environment = system, folder, jobs, environment
        self.bench = os.path.join(folder, "bench")
        shutil.copytree(content, self.bench)
        for name in os.listdir(os.path.join(BENCH, "guest")):
            shutil.copy(os.path.join(BENCH, "guest", name), self.bench)
        os.chmod(os.path.join(self.bench, "start"), 0o755)
        self.write("jobs", "".join("%s\t%s\n" % (job.name, job.command) for job in jobs))

    def write(self, name, text):
        with open(os.path.join(self.bench, name), "w", encoding="utf-8") as file:
            file.write(text)

    def settle(self, **more):
        self.write("environment", "".join("export %s=%s\n" % item for item in {**self.environment, **more}.items()))

    def initramfs(self):
        """The test guest's initramfs with the folder as /bench beside it."""
        path = os.path.join(self.folder, "initramfs")
        with open(path, "wb") as out:
            with open(asset("initramfs", "cloud"), "rb") as base:
                shutil.copyfileobj(base, out)
            names = subprocess.run(["find", "bench"], cwd=self.folder, check=True, stdout=subprocess.PIPE).stdout
            out.write(subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=self.folder, input=names, check=True,
                                     stdout=subprocess.PIPE).stdout)
        return path


def native_command(stage, cpus, disk, port):
    stage.settle(DISK="/mnt/disk", HOST="127.0.0.1", PORT=port)
    mounts = 'mount --bind %s "$0/mnt";' % os.path.dirname(disk) if disk else ""
    return in_tree(os.path.join(stage.system, "tree"), stage.bench, "/bin/bash", "/tmp/bench/agent", mounts=mounts,
                   processors="0" if cpus == 1 else None)


def guest_command(engine, stage, cpus, disk, port, memory="1G"):
    stage.settle(DISK="/dev/vdb", HOST=HOST_ADDRESS, PORT=port)
    kernel, initramfs, image = asset("kernel", "cloud"), stage.initramfs(), os.path.join(stage.system, "image")
    append = "console=ttyS0 quiet panic=-1 rdinit=/bench/start" + (" bench.address=" + GUEST_ADDRESS if port else "")
    if engine != "tcg":
        return [doppel(), "run", "--engine", engine, "--cpu", "host", "--memory", memory,
                "--cpus", str(cpus), "--kernel", kernel, "--initrd", initramfs, "--append", append, "--no-reboot",
                "--disk", image + ",ro", *(["--disk", disk] if disk else []), *(["--net", "user"] if port else [])]
    command = [QEMU, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", memory, "-smp", str(cpus), "-nodefaults", "-no-user-config",
               "-display", "none", "-serial", "stdio", "-monitor", "none", "-kernel", kernel, "-initrd", initramfs, "-append", append,
               "-no-reboot"]
    for number, (path, more) in enumerate([(image, ",readonly=on,file.locking=off"), *([(disk, "")] if disk else [])]):
        command += ["-drive", "if=none,id=d%d,format=raw,file=%s%s" % (number, path, more), "-device", "virtio-blk-pci,drive=d%d" % number]
    return command + (["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"] if port else [])


def run_queue_seconds(pid):
    """How long each thread of a process has waited for a processor, but for those whose policy says that nobody waits for them."""
    waited = {}
    for task in os.listdir("/proc/%d/task" % pid):
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(int(task)) not in (os.SCHED_IDLE, os.SCHED_BATCH):
                with open("/proc/%d/task/%s/schedstat" % (pid, task), encoding="ascii") as file:
                    waited[task] = int(file.read().split()[1]) / 1e9
    return waited


def processor_seconds(times):
    """What bash's 'times' says of children, in seconds."""
    return sum(int(minutes) * 60 + float(seconds) for minutes, seconds in re.findall(r"(\d+)m([0-9.]+)s", times))


class Console:
    """A running machine's console: its lines, with the time at which each arrived."""

    def __init__(self, command, log=None, silence=JOB_SECONDS + 20):
        self.silence = silence          # a guest that says nothing for so many seconds is given up
        self.log = log and open(log, "ab")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.tail = collections.deque(maxlen=15)

    def lines(self):
        selector, pending = selectors.DefaultSelector(), b""
        selector.register(self.process.stdout, selectors.EVENT_READ)
        while selector.select(self.silence):
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            if self.log:
                self.log.write(data)
                self.log.flush()
            for line in lines:
                text = line.decode(errors="replace").rstrip("\r")
                self.tail.append(text)
                yield time.monotonic(), text
        self.tail.append("(nothing more for %d seconds)" % self.silence)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        if self.log:
            self.log.close()


END = re.compile(r"BENCH-END (\S+) (\d+) ([0-9.]+) \[(.*?)\] \[(.*?)\] (\S+) (\S+) (\S+)")


def run_jobs(engine, stage, cpus, disk=None, port=None, log=None, limit=JOB_SECONDS):
    """Runs the stage's jobs; yields their names and outcomes. A job that nothing is heard of has the console's end as its output."""
    stage.environment["JOB_SECONDS"] = limit
    make = native_command if engine == "native" else lambda *rest: guest_command(engine, *rest)
    console = Console(make(stage, cpus, disk, port), log, limit + 20)
    heard, output, begin, queued = set(), "", 0, {}
    try:
        for when, line in console.lines():
            if line.startswith("BENCH-BEGIN"):
                begin, output = when, ""
                queued = {} if engine == "native" else run_queue_seconds(console.process.pid)
            elif END.match(line):
                name, status, guest, before, after, value, check, mean = END.match(line).groups()
                guest = float(guest)
                if engine == "native":
                    waited = max(0, guest - processor_seconds(after) + processor_seconds(before))
                else:
                    waited = max(seconds - queued.get(task, 0) for task, seconds in run_queue_seconds(console.process.pid).items())
                heard.add(name)
                yield name, Outcome(float(value), float(mean), check, int(status), output.strip(), when - begin, guest, waited)
            elif line.startswith("BENCH-DONE"):
                break
            else:
                output += line + "\n"
    finally:
        tail = "\n".join(console.tail)
        console.close()
    for job in stage.jobs:
        if job.name not in heard:
            yield job.name, Outcome(None, None, None, None, tail, 0, 0, 0)
            tail = "not reached"

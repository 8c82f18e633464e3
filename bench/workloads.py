"""What is measured: groups of jobs, and the floor of each group."""
import collections

# A job is a command for the agent's bash, run in a folder with 'bin' (the programs of bench/programs) and 'work'.
Job = collections.namedtuple("Job", "name command")

# native: at most so many times native time; qemu: at least so many times faster than QEMU; None: no such floor.
Group = collections.namedtuple("Group", "title jobs cpus native qemu")


def jobs(*rows):
    return [Job(name.replace(" ", "_"), command) for name, command in rows]


def both(*programs):
    """Each program compiled plain and for x86-64-v3."""
    return [(program + suffix, "bin/" + program + suffix) for program in programs for suffix in ("", "-v3")]


def groups(quick):
    """Quick: programs that end after some 0.05 to 0.5 seconds natively, so their start counts; else those of `integer` take a second or more."""
    size = 1 if quick else 2
    text = 1 if quick else 8
    times = 1 if quick else 20
    seconds = 1 if quick else 3
    return {
        "integer": Group("integer, user", jobs(
            ("7z", "7zz a -mx5 -mmt1 -bso0 -bsp0 x.7z work/text-%d && stat -c %%s x.7z; rm x.7z" % text),
            ("xz", "xz -6 -T1 -c work/text-%d | cksum" % text),
            ("xz unpacking", "for i in $(seq %d); do cat work/text.xz; done | xz -dc | cksum" % (3 * times)),
            ("zstd", "for i in $(seq %d); do cat work/text-%d; done | zstd -q -9 --single-thread -c | cksum" % (1 if quick else 4, text)),
            ("sqlite", "sed s/40000/%d/ work/sqlite.sql | sqlite3 :memory:" % (40000 if quick else 400000)),
            ("python", "python3 work/python.py %d" % (3 * times - 2)),
            ("luajit", "luajit work/lua.lua %d" % max(1, times // 2)),
            ("gcc -O2", "gcc -O2%s -c -o /tmp/out.o work/compile.c && cksum </tmp/out.o" % ("" if quick else " -DALL")),
            ("sysbench cpu", "sysbench_value %d" % (500 * size)),
            ("openssl rsa", "ssl_value rsa2048"),
        ), 1, 2.8, 4),
        "float": Group("floating point and SIMD", jobs(
            *both("nbody", "dgemm", "libm", "fir"),
            ("x87", "bin/x87"),
            ("aes-256-gcm", "ssl_value -bytes 16384 -evp aes-256-gcm"),
            ("sha256", "ssl_value -bytes 16384 -evp sha256"),
            ("chacha20", "ssl_value -bytes 16384 -evp chacha20-poly1305"),
        ), 1, 2.2, 30),
        "memory": Group("memory", jobs(
            *[("stream " + what, "bin/stream " + what) for what in ("copy", "fill", "triad")],
            *[("chase " + what, "bin/chase " + what) for what in ("16K", "1M", "64M")],
        ), 1, None, 3),
        "system": Group("system", jobs(
            *[(what, "bin/syscall " + what) for what in ("getppid", "clock_gettime")],
            ("context switch", "bin/pipe same"),
            *[(what, "bin/process " + what) for what in ("fork", "exec", "thread")],
            *[(name, "bin/fault " + what) for name, what in (("page fault", "page"), ("mprotect", "mprotect"),
                                                           ("signal", "signal"), ("segv", "segv"))],
            ("files", "bin/files"),
            ("patched jump", "bin/code jump"), ("patched constant", "bin/code immediate"), ("jit", "bin/code jit"),
            ("hackbench", "hackbench_value -g 1 -l %d -s 100" % (50 * size)),
            ("shell script", "sh work/shell.sh"),
        ), 1, None, 3),
        "boot": Group("boot, to the first line of user space", [], 1, None, 2.5),
        "smp": Group("SMP, 2 vCPUs", jobs(
            ("work, 1 thread", "bin/smp one"), ("work, 2 threads", "bin/smp two"),
            ("pipe across", "bin/pipe cross"), ("atomics", "bin/smp atomics"), ("shootdown", "bin/smp shootdown"),
        ), 2, None, 2),
        "disk": Group("disk", jobs(*[(name, "fio_value $DISK %d %s" % (seconds, options)) for name, options in (
            ("4k random read, 1", "--rw=randread --bs=4k --iodepth=1"),
            ("4k random read, 32", "--rw=randread --bs=4k --iodepth=32"),
            ("4k random write, 32", "--rw=randwrite --bs=4k --iodepth=32"),
            ("1M read", "--rw=read --bs=1M --iodepth=4"),
            ("1M write", "--rw=write --bs=1M --iodepth=4"))]), 1, None, 3),
        "network": Group("network", jobs(*[(name, "bin/net %s $HOST $PORT" % what) for name, what in (
            ("TCP out, 1M", "send"), ("TCP in, 1M", "receive"), ("50 requests", "request"), ("10 connects", "connect"))]),
            1, None, 3),
        "idle": Group("idle", [], 1, None, None),
    }


NAMES = list(groups(True))

"""Tables in Markdown out of medians."""
import math

IDLE_PERCENT = 0.6      # the most that an idle guest may take of a host processor
SCALING = 1.8           # how much faster two processors have to be than one


def amount(seconds):
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return "%.3g %s" % (seconds * factor, unit)
    return "%.3g ns" % (seconds * 1e9)


def mean(values):
    """The geometric mean, or None of nothing."""
    return math.exp(sum(math.log(value) for value in values) / len(values)) if values else None


def ratio(medians, over, under):
    """The ratio of two engines' medians, where there are both."""
    return medians[over] / medians[under] if over in medians and medians.get(under) else None


def shown(value):
    return "-" if value is None else "%.3g" % value


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def verdict(what, value, floor, met):
    print("%s %s; floor %s: **%s**" % (what, shown(value), floor, "met" if met else "missed"), flush=True)
    return met


def group(name, description, medians, problems, engines):
    """Prints a group's table and verdicts. True: every floor that could be judged is met."""
    print("\n### %s\n" % description.title)
    met = True
    if name == "idle":
        row("", *engines)
        row(*["---"] * (len(engines) + 1))
        row("% of a processor", *[shown(medians.get("idle", {}).get(engine)) for engine in engines])
        print()
        if "dbt" in medians.get("idle", {}):
            used = medians["idle"]["dbt"]
            met = verdict("Idle, %", used, "at most %s" % IDLE_PERCENT, used <= IDLE_PERCENT)
    else:
        row("", *engines, "dbt / native", "tcg / native", "tcg / dbt")
        row(*["---"] * (len(engines) + 4))
        pairs = (("dbt", "native"), ("tcg", "native"), ("tcg", "dbt"))
        columns = [[ratio(by_engine, *pair) for by_engine in medians.values()] for pair in pairs]
        for number, (job, by_engine) in enumerate(medians.items()):
            row(job.replace("_", " "), *[amount(by_engine[engine]) if engine in by_engine else "-" for engine in engines],
                *[shown(column[number]) for column in columns])
        means = [mean([value for value in column if value]) for column in columns]
        row("**geometric mean**", *[""] * len(engines), *["**%s**" % shown(value) for value in means])
        print()
        if description.native and means[0]:
            met &= verdict("Times native", means[0], "at most %s" % description.native, means[0] <= description.native)
        if description.qemu and means[2]:
            met &= verdict("Times QEMU", means[2], "at least %s" % description.qemu, means[2] >= description.qemu)
        if name == "smp" and "dbt" in medians.get("work,_1_thread", {}) and "dbt" in medians.get("work,_2_threads", {}):
            gain = 2 * medians["work,_1_thread"]["dbt"] / medians["work,_2_threads"]["dbt"]
            met &= verdict("Throughput of two vCPUs over one", gain, "at least %s" % SCALING, gain >= SCALING)
    for problem in problems:
        print("- FAILED: " + problem.replace("\n", "\n    "), flush=True)
    return met

"""Translations that are kept for the next start, and what perf is told about them."""
import os
import random
import re
import struct

from cases import case
from machine import BOOT_SECONDS, Failure, exit_status


def boot(test, *options, memory="512M", cpus=1, append=""):
    """A boot to the end; what it counted, and what it printed."""
    before = os.path.getsize(test.log) if os.path.exists(test.log) else 0
    with test.linux("cloud", "--counters", *options, append="quiet doppel.test=cpu " + append, memory=memory, cpus=cpus) as machine:
        machine.expect(r"^DOPPEL-TEST cpu ok")
        machine.end(exit_status("DONE"), BOOT_SECONDS)
    with open(test.log, errors="replace") as log:
        log.seek(before)
        text = log.read()
    return {name: int(value) for name, value in re.findall(r"^([a-z0-9_]+) +(\d+) ", text, re.MULTILINE)}, text


def the_file(directory):
    names = os.listdir(directory)
    if len(names) != 1 or not names[0].startswith("translations-"):
        raise Failure("the directory of translations holds %s" % names)
    path = os.path.join(directory, names[0])
    if os.stat(path).st_mode & 0o777 != 0o600:
        raise Failure("others may read the file of translations")
    return path


def damage_half(path):
    """A bit in each 64 bytes of the file's second half: entries are longer than that, and header and index end before."""
    with open(path, "r+b") as file:
        half = os.path.getsize(path) // 2
        file.seek(half)
        data = bytearray(file.read())
        for at in range(0, len(data), 64):
            data[at] ^= 0x40
        file.seek(half)
        file.write(data)


@case("the second boot uses the first one's translations, at other addresses; damaged ones are told of once, not used and made anew")
def translations_kept(test):
    cache = ("--translation-cache", test.path("translations"))
    first, _ = boot(test, *cache)
    path = the_file(cache[1])
    second, text = boot(test, *cache)
    if first["translations"] < 5000 or second["translations"] > first["translations"] / 3:
        raise Failure("%d translations in the first boot, %d in the second" % (first["translations"], second["translations"]))
    if second["translations_reused"] < first["translations"] * 2 / 3:
        raise Failure("only %d translations were used again" % second["translations_reused"])
    if "damaged" in text or "not used" in text:
        raise Failure("the second boot complains")
    damage_half(path)
    third, text = boot(test, *cache)
    if len(re.findall("are damaged", text)) != 1:
        raise Failure("damaged translations were not told of once")
    if third["translations"] < second["translations"] + first["translations"] / 4:
        raise Failure("%d translations with half of the kept ones damaged, %d with none" % (third["translations"], second["translations"]))
    if third["translations_reused"] < first["translations"] / 4:
        raise Failure("only %d translations were used again of a file that is half good" % third["translations_reused"])
    with open(path, "r+b") as file:
        file.write(b"something else")
    fourth, text = boot(test, *cache)
    if len(re.findall("are not used: it is no file of translations", text)) != 1 or fourth["translations"] < first["translations"] / 2:
        raise Failure("a foreign file was not refused with one warning")
    if boot(test, *cache)[0]["translations"] > first["translations"] / 3:
        raise Failure("the foreign file was not replaced")


def states(test, name, memory, *options):
    """A boot with counted time: number, RIP and digest of the states that it goes through, and of memory."""
    path = test.path(name)
    boot(test, "--clock", "instructions", "--state-log", path + ",every=100003,memory=1000", *options, memory=memory)
    with open(path) as log:
        lines = [line.split() for line in log]
    return [line[:3] + line[4:] for line in lines]      # without flags that nobody reads


@case("with counted time a boot goes through the same states without kept translations, while they are made, and with them, "
      "its kernel elsewhere, too")
def translations_lockstep(test):
    cache = ("--translation-cache", test.path("translations"))
    for name, memory in (("made", "256M"), ("moved", "300M")):
        without = states(test, name + "-without", memory, "--translation-cache", "off")
        for run in ("first", "second"):
            if states(test, name + "-" + run, memory, *cache) != without:
                raise Failure("%s, %s run: the states differ from those without kept translations" % (name, run))
        if len(without) < 1000:
            raise Failure("only %d states" % len(without))


@case("a boot that throws its translated code away all the time goes through the same states, with kept translations and without")
def translations_tiny(test):
    without = states(test, "all", "256M", "--translation-cache", "off")
    for kept in ("off", "memory"):
        if states(test, "tiny-" + kept, "256M", "--translation-cache", kept, "--code-cache", "512K") != without:
            raise Failure("the states differ with a small cache, --translation-cache %s" % kept)
    counted, _ = boot(test, "--translation-cache", "memory", "--code-cache", "256K")
    if counted["code_flushes"] < 50 or counted["translations_reused"] < 5000:
        raise Failure("thrown away %d times, %d used again" % (counted["code_flushes"], counted["translations_reused"]))


@case("two processors and two machines share kept translations, and with a machine that had one processor", cpus=2)
def translations_shared(test):
    cache = ("--translation-cache", test.path("translations"))
    boot(test, *cache)
    with test.linux("cloud", *cache, append="quiet doppel.test=cpu", cpus=2) as other:
        counted, _ = boot(test, *cache, cpus=2)
        other.expect(r"^DOPPEL-TEST cpu ok")
        other.end(exit_status("DONE"), BOOT_SECONDS)
    the_file(cache[1])
    if counted["translations_reused"] < 5000:
        raise Failure("only %d translations were used again" % counted["translations_reused"])


def damage(path, dice):
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        for _ in range(dice.choice((1, 50, 2000))):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.seek(0)
        file.write(content)


@case("two dozen boots with one directory of kept translations, which is damaged at random between them, with one and two processors, the "
      "kernel moved or not, small and large caches of code: all come to their end", cpus=2, long=True)
def translations_stress(test):
    dice, directory = random.Random(1), test.path("translations")
    for number in range(24):
        if number and dice.random() < 0.3:
            damage(the_file(directory), dice)
        options = ("--code-cache", "4M") if dice.random() < 0.3 else ()
        counted, _ = boot(test, "--translation-cache", directory, *options, cpus=dice.choice((1, 1, 2)), append=dice.choice(("", "", "nokaslr")))
        if counted["translations"] + counted["translations_reused"] < 5000:
            raise Failure("boot %d: only %d translations" % (number, counted["translations"] + counted["translations_reused"]))


@case("--jitdump writes all translated code with its names, as perf inject reads it")
def jitdump(test):
    directory = test.path("dump")
    os.mkdir(directory)
    counted, _ = boot(test, "--jitdump", directory)
    (name,) = os.listdir(directory)
    with open(os.path.join(directory, name), "rb") as file:
        dump = file.read()
    magic, version, header, machine, _, pid, _, _ = struct.unpack_from("<6IQQ", dump)
    if (magic, version, header, machine) != (0x4A695444, 1, 40, 62) or name != "jit-%d.dump" % pid:
        raise Failure("the header is wrong")
    at, loads, last = header, 0, None
    while at < len(dump):
        last, size, _ = struct.unpack_from("<IIQ", dump, at)
        if last == 0:
            _, _, vma, address, code, index = struct.unpack_from("<IIQQQQ", dump, at + 16)
            text = dump[at + 56:at + size - code]
            if vma != address or index != loads or not re.fullmatch(rb"(kernel|user)_[0-9a-f]+(_window)?(_out)?\0", text):
                raise Failure("record %d is wrong" % loads)
            loads += 1
        at += size
    if at != len(dump) or last != 3 or loads != 2 * (counted["translations"] + counted["translations_reused"]):         # a hot and a cold part each
        raise Failure("%d records, %s translations" % (loads, counted["translations"]))

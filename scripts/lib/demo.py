"""Boots a guest under every backend with its console visible: on the engine that --engine auto gives
those backends, and beside it on the interpreter. Ends with tables of costs.

Usage: demo.py BIN IMAGES        (IMAGES is "none" to boot the in-tree guest)
"""

import re
import sys
import tempfile
import time

from console_session import ConsoleError, ConsoleSession
from debian_guest import DebianGuest, backends, read_stats, run_command


# Something for the guest to do, and the line that says what it came to.
WORK = "head -c 3000000 /dev/zero | md5sum"
WORK_SAID = re.compile(r"([0-9a-f]{32})  -")
CHECKS_SAID = re.compile(r"checks: (.*, 0 failed)")


class Boot:
    """What a user saw of one guest, and what it cost."""

    def __init__(self, session, booted, worked, said):
        self.booted, self.worked = booted, worked  # seconds; None: there was no work
        found = said.search(session.text)
        if not found:
            raise ConsoleError(f"the guest did not say {said.pattern!r}")
        self.answer = found[1]
        self.counted = None

    @property
    def name(self):
        return f"{self.counted['engine']}/{self.counted['mmu']}"


def boot_debian(strata, images, engine, mmu, stats):
    guest = DebianGuest(run_command(strata, images, engine, mmu, "--stats", stats), echo=True)
    guest.type("uname -a; free -m", "Mem:")
    start = time.monotonic()
    guest.type(WORK, "  -")
    worked = time.monotonic() - start
    guest.power_off()
    return Boot(guest.session, guest.booted, worked, WORK_SAID)


def boot_in_tree_guest(strata, guest, engine, mmu, stats):
    session = ConsoleSession(
        [strata, "run", "--kernel", guest, "--append", "auto", "--memory", "64M", "--engine", engine,
         "--mmu", mmu, "--stats", stats],
        echo=True)
    if session.finish(120) != 0:
        raise ConsoleError("the guest did not power off cleanly")
    return Boot(session, session.elapsed(), None, CHECKS_SAID)


def boot(binaries, images, engine, mmu):
    with tempfile.TemporaryDirectory() as scratch:
        stats = f"{scratch}/stats.json"
        if images == "none":
            made = boot_in_tree_guest(f"{binaries}/strata", f"{binaries}/strata_guest.elf", engine,
                                      mmu, stats)
        else:
            made = boot_debian(f"{binaries}/strata", images, engine, mmu, stats)
        made.counted = read_stats(stats)
        return made


def cost_row(made):
    counted = made.counted
    vcpu, walk = counted["vcpu"], counted["translation"]
    tables = counted["tables"]["shadow_bytes" if counted["mmu"] == "shadow" else "nested_bytes"]
    exits = sum(counted["exits"].values())
    return [made.name, f"{made.booted:.1f}", f"{vcpu['instructions'] / 1e6:,.0f}", f"{exits:,}",
            f"{vcpu['tlb_misses']:,}", f"{walk['references_per_walk']:.1f}",
            f"{tables / 1024:,.0f}", f"{counted['tables']['p2m_bytes'] / 1024:,.0f}",
            f"{counted['overhead']['guest_bytes'] / 2**20:.0f}",
            f"{counted['overhead']['vmm_resident_bytes'] / 2**20:.1f}"]


COSTS = ["engine/mmu", "boot s", "M instr", "exits", "TLB misses", "refs/walk", "tables KiB", "P2M KiB",
         "guest MiB", "overhead MiB"]


def print_table(headings, rows):
    widths = [max(len(r[i]) for r in [headings, *rows]) for i in range(len(headings))]
    for r in [headings, ["-" * w for w in widths], *rows]:
        print("  ".join(cell.rjust(w) for cell, w in zip(r, widths)))


def print_exits(boots):
    print("\nexits by kind:")
    for made in boots:
        kinds = sorted(made.counted["exits"].items(), key=lambda kv: -kv[1])
        print(f"  {made.name:<14}" + ", ".join(f"{name} {count:,}" for name, count in kinds))


def seconds(fast, slow):
    """Both, and how many times faster the first is."""
    if fast is None or slow is None:
        return ["-", "-", "-"]
    return [f"{fast:.2f}", f"{slow:.2f}", f"{slow / fast:.1f}"]


def print_beside(pairs):
    """The same guest on the engine that users get and on the interpreter, as its user sees it."""
    engine = pairs[0][0].counted["engine"]
    print(f"\nthe same guest on {engine} and on interp, in seconds"
          + (f"; work is {WORK}" if pairs[0][0].worked else "") + ":")
    rows = [[fast.counted["mmu"], *seconds(fast.booted, slow.booted),
             *seconds(fast.worked, slow.worked),
             "the same" if fast.answer == slow.answer else f"{fast.answer}, not {slow.answer}"]
            for fast, slow in pairs]
    print_table(["mmu", f"boot {engine}", "interp", "times faster", f"work {engine}", "interp",
                 "times faster", "the guest said"], rows)
    return all(fast.answer == slow.answer for fast, slow in pairs)


def main():
    binaries, images = sys.argv[1], sys.argv[2]
    boots, pairs = [], []
    for mmu in backends(f"{binaries}/strata", "interp"):
        here = []
        for engine in ("auto", "interp"):
            # Without bt, auto was the interpreter already.
            if here and here[0].counted["engine"] == engine:
                continue
            print(f"\n==> booting under {mmu}, engine {engine}", flush=True)
            try:
                here.append(boot(binaries, images, engine, mmu))
            except ConsoleError as error:
                print(f"\ndemo: {engine}, {mmu}: {error}", file=sys.stderr)
                return 1
        boots += here
        if len(here) == 2:
            pairs.append(here)
    print("\n")
    print_table(COSTS, [cost_row(made) for made in boots])
    print_exits(boots)
    return 0 if not pairs or print_beside(pairs) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Boots a guest under every backend with its console visible; ends with a table of costs.

Usage: demo.py BIN IMAGES        (IMAGES is "none" to boot the in-tree guest)
"""

import sys
import tempfile

from console_session import ConsoleError, ConsoleSession
from debian_guest import DebianGuest, backends, read_stats, run_command


def boot_debian(strata, images, mmu, stats):
    guest = DebianGuest(run_command(strata, images, "interp", mmu, "--stats", stats), echo=True)
    guest.type("uname -a; free -m", "Mem:")
    guest.power_off()
    return guest.booted


def boot_in_tree_guest(strata, guest, mmu, stats):
    session = ConsoleSession(
        [strata, "run", "--kernel", guest, "--append", "auto", "--memory", "64M", "--engine", "interp", "--mmu", mmu,
         "--stats", stats],
        echo=True)
    if session.finish(120) != 0:
        raise ConsoleError("the guest did not power off cleanly")
    return session.elapsed()


def row(mmu, booted, counted):
    vcpu, walk = counted["vcpu"], counted["translation"]
    tables = counted["tables"]["shadow_bytes" if mmu == "shadow" else "nested_bytes"]
    exits = sum(counted["exits"].values())
    return [mmu, f"{booted:.1f}", f"{vcpu['instructions'] / 1e6:,.0f}", f"{exits:,}",
            f"{vcpu['tlb_misses']:,}", f"{walk['references_per_walk']:.1f}",
            f"{tables / 1024:,.0f}", f"{counted['tables']['p2m_bytes'] / 1024:,.0f}",
            f"{counted['overhead']['guest_bytes'] / 2**20:.0f}",
            f"{counted['overhead']['vmm_resident_bytes'] / 2**20:.1f}"]


HEADINGS = ["mmu", "boot s", "M instr", "exits", "TLB misses", "refs/walk", "tables KiB", "P2M KiB",
            "guest MiB", "overhead MiB"]


def print_table(rows):
    widths = [max(len(r[i]) for r in [HEADINGS, *rows]) for i in range(len(HEADINGS))]
    for r in [HEADINGS, ["-" * w for w in widths], *rows]:
        print("  ".join(cell.rjust(w) for cell, w in zip(r, widths)))


def print_exits(results):
    print("\nexits by kind:")
    for mmu, counted in results:
        kinds = sorted(counted["exits"].items(), key=lambda kv: -kv[1])
        print(f"  {mmu:<7}" + ", ".join(f"{name} {count:,}" for name, count in kinds))


def main():
    binaries, images = sys.argv[1], sys.argv[2]
    strata = f"{binaries}/strata"
    rows, results = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for mmu in backends(strata, "interp"):
            print(f"\n==> booting under {mmu}", flush=True)
            stats = f"{scratch}/{mmu}.json"
            try:
                if images == "none":
                    booted = boot_in_tree_guest(strata, f"{binaries}/strata_guest.elf", mmu, stats)
                else:
                    booted = boot_debian(strata, images, mmu, stats)
            except ConsoleError as error:
                print(f"\ndemo: {mmu}: {error}", file=sys.stderr)
                return 1
            counted = read_stats(stats)
            rows.append(row(mmu, booted, counted))
            results.append((mmu, counted))
    print("\n")
    print_table(rows)
    print_exits(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

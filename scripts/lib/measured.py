"""Writes docs/measured.md from a boot under each backend and the JSON of the benchmarks.

Usage: measured.py STRATA IMAGES BENCH_JSON_DIR OUT
"""

import json
import os
import pathlib
import platform
import sys
import tempfile

from debian_guest import DebianGuest, backends, read_stats, run_command


def boot_stats(strata, images, mmu):
    with tempfile.TemporaryDirectory() as scratch:
        stats = f"{scratch}/stats.json"
        guest = DebianGuest(run_command(strata, images, "interp", mmu, "--stats", stats))
        guest.power_off()
        counted = read_stats(stats)
        counted["boot_seconds"] = guest.booted
        return counted


def table(headings, rows):
    lines = ["| " + " | ".join(headings) + " |", "| " + " | ".join("---" for _ in headings) + " |"]
    lines += ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def boot_table(runs):
    rows = []
    for name, pick in [
            ("boot to init, s", lambda d: f"{d['boot_seconds']:.2f}"),
            ("guest instructions, million", lambda d: f"{d['vcpu']['instructions'] / 1e6:,.0f}"),
            ("exits", lambda d: f"{sum(d['exits'].values()):,}"),
            ("engine TLB misses", lambda d: f"{d['vcpu']['tlb_misses']:,}"),
            ("backend misses (shadow misses, violations)", lambda d: f"{d['translation']['misses']:,}"),
            ("references per walk", lambda d: f"{d['translation']['references_per_walk']:.2f}"),
            ("A/D writes", lambda d: f"{d['translation']['ad_writes']:,}"),
            ("traced writes", lambda d: f"{d['translation']['traced_writes']:,}"),
            ("page faults delivered", lambda d: f"{d['translation']['guest_faults']:,}"),
            ("shadow or nested tables, KiB",
             lambda d: f"{(d['tables']['shadow_bytes'] + d['tables']['nested_bytes']) / 1024:,.0f}"),
            ("P2M, KiB", lambda d: f"{d['tables']['p2m_bytes'] / 1024:,.0f}"),
            ("guest memory in use, MiB", lambda d: f"{d['overhead']['guest_bytes'] / 2**20:.1f}"),
            ("VMM resident beyond it, MiB",
             lambda d: f"{d['overhead']['vmm_resident_bytes'] / 2**20:.1f}"),
            ("of that, binary and libraries, MiB",
             lambda d: f"{d['overhead']['binary_bytes'] / 2**20:.1f}"),
            ("host page tables, KiB",
             lambda d: f"{d['overhead']['host_page_table_bytes'] / 1024:,.0f}")]:
        rows.append([name, *[pick(d) for d in runs.values()]])
    return table(["", *runs], rows)


def exits_table(runs):
    kinds = sorted({k for d in runs.values() for k in d["exits"]})
    return table(["exit", *runs],
                 [[k, *[f"{d['exits'].get(k, 0):,}" for d in runs.values()]] for k in kinds])


def compare_table(path):
    if not path.exists():
        return "QEMU was not there to compare with.\n"
    figures = json.loads(path.read_text())
    return table(["", "median s", "times TCG"],
                 [[n, f"{f['seconds']:.2f}", f"{f['ratio_to_tcg']:.2f}"]
                  for n, f in figures.items()])


STANDARD = {"name", "family_index", "per_family_instance_index", "run_name", "run_type",
            "repetitions", "repetition_index", "threads", "iterations", "real_time", "cpu_time",
            "time_unit", "items_per_second", "bytes_per_second", "label"}


def bench_table(path):
    rows = []
    for b in json.loads(path.read_text())["benchmarks"]:
        if b.get("error_occurred"):
            continue
        rate = f"{b['items_per_second'] / 1e6:,.2f} M/s" if "items_per_second" in b else ""
        counters = ", ".join(f"{k} {v:,.2f}" for k, v in b.items()
                             if k not in STANDARD and isinstance(v, (int, float)))
        rows.append([f"`{b['name']}`", f"{b['real_time']:,.1f} {b['time_unit']}", rate, counters])
    return table(["benchmark", "time", "rate", "events"], rows)


def host_line():
    model = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"Host: {model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}."


def main():
    strata, images, bench, out = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4]
    runs = {mmu: boot_stats(strata, images, mmu) for mmu in backends(strata, "interp")}
    parts = ["# Measured\n", "Written by `scripts/measure`; do not edit.\n", host_line() + "\n",
             "## A Debian cloud kernel from start to init, 256 MiB, engine interp\n",
             boot_table(runs), "### Exits by kind\n", exits_table(runs),
             "## Boot to init beside QEMU TCG, same run\n", compare_table(bench / "boot.json"),
             "## Micro-benchmarks\n"]
    for path in sorted(bench.glob("*_bench.json")):
        parts += [f"### {path.stem}\n", bench_table(path)]
    pathlib.Path(out).write_text("\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

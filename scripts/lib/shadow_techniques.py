"""Writes the measured part of docs/shadow-techniques.md: a boot with processes, and the benchmarks,
with each technique on and off.

Usage: shadow_techniques.py STRATA IMAGES SHADOW_BENCH_JSON DOC [RUNS]
"""

import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

from console_session import ConsoleSession
from measured import host_line, table

MARKER = "<!-- measured: written by scripts/measure, do not edit below -->"
PROMPT = "~ # "
# Forty processes: pipes, fork, exec, exit.
WORK = ("for i in 1 2 3 4 5 6 7 8 9 10; do head -c 300000 /dev/zero | md5sum | cut -c1-3; "
        "ls / >/dev/null; done; echo done-$((6*7))\n")


def techniques(strata):
    """The words of --mmu shadow, from --help."""
    text = subprocess.run([strata, "run", "--help"], capture_output=True, text=True,
                          check=True).stdout
    return re.findall(r",(no-\w+)", text)


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def boot(strata, images, mmu):
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as scratch:
        stats = f"{scratch}/stats.json"
        session = ConsoleSession(
            [strata, "run", "--kernel", f"{images}/vmlinuz", "--initrd",
             f"{images}/initramfs.gz", "--append", "console=ttyS0", "--memory", "256M",
             "--engine", "interp", "--mmu", mmu, "--stats", stats])
        session.expect("strata: init reached", 600)
        session.expect(PROMPT, 60)
        session.send(WORK)
        session.expect("done-42", 300)
        session.expect(PROMPT, 60)
        session.send("poweroff -f\n")
        if session.finish(120) != 0:
            raise SystemExit(f"{mmu}: the guest did not power off cleanly")
        counted = json.loads(pathlib.Path(stats).read_text())
    counted["cpu_seconds"] = cpu_seconds() - before
    return counted


def boots_table(runs):
    def backend(key):
        return lambda d: f"{d['backend'][key]:,}" if key in d["backend"] else ""

    def translation(key):
        return lambda d: f"{d['translation'][key]:,}"

    columns = [("CPU s", lambda d: f"{d['cpu_seconds']:.2f}"),
               ("misses", translation("misses")), ("traced writes", translation("traced_writes")),
               ("translations", translation("translations")), ("unsyncs", backend("unsyncs")),
               ("resyncs", backend("resyncs")), ("outdated", backend("outdated")),
               ("floods", backend("floods")), ("prefetched", backend("prefetched")),
               ("used", backend("prefetch_used")), ("evictions", backend("evictions")),
               ("tables KiB", lambda d: f"{d['translation']['table_bytes'] // 1024:,}")]
    return table(["`--mmu`", *[name for name, _ in columns]],
                 [[f"`{mmu}`", *[pick(d) for _, pick in columns]] for mmu, d in runs.items()])


def bench_rows(path):
    rows = []
    for b in json.loads(path.read_text())["benchmarks"]:
        if not re.match(r"BM_(Fork|FaultStorm|TableReuse|SequentialTouch|ContextSwitch|"
                        r"TouchLargePages|TablesUnderLimit)", b["name"]):
            continue
        micro = b["cpu_time"] * {"ns": 1e-3, "us": 1, "ms": 1e3}[b["time_unit"]]
        events = [f"{k} {b[k]:,.1f}" for k in
                  ("misses", "traced_writes", "unsyncs", "resyncs", "outdated", "floods",
                   "prefetched", "prefetch_used", "evictions", "tables_KiB", "limit_KiB")
                  if b.get(k)]
        rows.append([f"`{b['name'].removeprefix('BM_')}`", f"{micro:,.1f}", ", ".join(events)])
    return rows


def main():
    strata, images, bench, doc = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4]
    repeat = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    words = techniques(strata)
    names = ["shadow", *[f"shadow,{w}" for w in words], "shadow," + ",".join(words), "ept"]
    runs = {}
    for mmu in names:
        best = min((boot(strata, images, mmu) for _ in range(repeat)),
                   key=lambda d: d["cpu_seconds"])
        runs[mmu] = best
    text = pathlib.Path(doc).read_text().split(MARKER)[0]
    parts = [text + MARKER + "\n", "## Measured\n", host_line() + "\n",
             "A Debian cloud kernel with 256 MiB boots, runs 40 processes and powers off. CPU time is "
             f"that of the whole VMM, the least of {repeat}; the rest is of that run.\n",
             boots_table(runs),
             "`scripts/bench`, backend alone: CPU time and events of one iteration.\n",
             table(["benchmark", "CPU µs", "events"], bench_rows(bench))]
    pathlib.Path(doc).write_text("\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

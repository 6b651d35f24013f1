#!/usr/bin/python3
"""Runs bench/guest under Strata, under QEMU TCG and natively in one run; writes docs/performance.md.

Usage: guest.py BIN IMAGES [options]    (BIN: folder with strata and strata_bench_guest;
                                         IMAGES: what scripts/guest-images makes)
Needs qemu-system-x86_64 (Debian package qemu-system-x86; for comparison only). Runs alternate, so that
all columns meet the same host; of several repetitions the best counts, for what disturbs a run only
ever makes it longer. The results file is written after every column.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
import performance  # noqa: E402
from debian_guest import backends, image_files  # noqa: E402
from guest_suite import (BOOT, list_tests, make_initramfs, native_column, run_suite,  # noqa: E402
                         strata_column, tcg_column)
from measured import host_line  # noqa: E402

EMPTY = "empty"  # the test that does nothing: its time is what two console lines cost


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("--engines", default="", help="e.g. bt,interp (default: bt, or interp without)")
    parser.add_argument("--mmus", default="", help="e.g. shadow,ept (default: all of the build)")
    parser.add_argument("--models", default="default,mitigation-free", help="CPU models")
    parser.add_argument("--only", default="", help="tests or groups (default: all)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of every test's work")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one test")
    parser.add_argument("--machine", default="pc", help="QEMU's: pc or microvm")
    parser.add_argument("--no-events", action="store_true", help="no event counts (a boot per test)")
    parser.add_argument("--quick", action="store_true",
                        help="scale 0.05, one repetition, one MMU, events of three tests; writes beside "
                             "the results, not to docs/")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("build/bench/guest.json"))
    parser.add_argument("--docs", type=pathlib.Path, help="folder for performance.md (default: docs)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.scale, options.repeat = 0.05, 1
    # Part of the suite is not what docs/ is about.
    partial = options.quick or options.only
    options.docs = options.docs or (options.json.parent if partial else pathlib.Path("docs"))
    return options


def strata_columns(options, kernel, initrd):
    strata = options.bin / "strata"
    engines = [e for e in options.engines.split(",") if e]
    if not engines:
        engines = ["bt"] if backends(strata, "bt") else ["interp"]
    columns = []
    for engine in engines:
        mmus = [m for m in options.mmus.split(",") if m] or backends(strata, engine)
        if not mmus:
            raise SystemExit(f"guest.py: this build has no engine {engine}")
        for model in options.models.split(","):
            for mmu in mmus[:1] if options.quick else mmus:
                columns.append(strata_column(strata, kernel, initrd, engine, mmu, model))
    return columns


class Comparison:
    """All columns, what they gave so far, and the file that holds it."""

    def __init__(self, options):
        self.options = options
        binary = options.bin / "strata_bench_guest"
        kernel, initrd = image_files(options.images)[0], options.json.parent / "bench-initramfs.gz"
        options.json.parent.mkdir(parents=True, exist_ok=True)
        make_initramfs(binary, initrd)
        # The native run is first: its checksums are those that the others must have.
        self.columns = [native_column(binary),
                        *[tcg_column(kernel, initrd, options.machine, model)
                          for model in options.models.split(",")],
                        *strata_columns(options, kernel, initrd)]
        tests = list_tests(binary)
        only = [w for w in options.only.split(",") if w]
        unknown = set(only) - set(tests) - set(tests.values())
        if unknown:
            raise SystemExit(f"guest.py: no test or group {', '.join(sorted(unknown))}; tests are "
                             f"{', '.join(tests)}")
        self.tests = {name: group for name, group in tests.items()
                      if not only or name in only or group in only or name == EMPTY}
        self.results = {
            "host": host_line(), "kernel": kernel.resolve().name, "scale": options.scale,
            "strata": first_line([options.bin / "strata", "--version"]),
            "qemu": f"{first_line(['qemu-system-x86_64', '--version'])}, machine {options.machine}",
            "tests": {BOOT: "boot", **self.tests},
            "columns": {c.name: {"kind": c.kind, **c.details, "seconds": {}, "failures": {},
                                 "events": {}} for c in self.columns}}
        self.checksums = {}

    def save(self):
        partial = self.options.json.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.options.json)

    def run_column(self, column):
        """One repetition of the tests that have not failed before in this column."""
        kept = self.results["columns"][column.name]
        names = [n for n in self.tests if n not in kept["failures"]]
        run = run_suite(column, names, self.options.scale, self.options.timeout, progress(column))
        for name, checksum in run.checksums.items():
            if checksum != self.checksums.setdefault(name, checksum):
                run.failures[name] = f"{checksum} instead of {self.checksums[name]}"
                progress(column)(name, "failed: " + run.failures[name])
        kept["failures"].update(run.failures)
        for name, seconds in run.seconds.items():
            if name not in run.failures:
                kept["seconds"].setdefault(name, []).append(seconds)
        self.save()

    def count_events(self, column):
        """A guest that ran one test less a guest that ran none, by counter."""
        names = [n for n in self.tests if n != EMPTY]
        if self.options.quick:
            names = names[::max(1, len(names) // 3)][:3]
        kept = self.results["columns"][column.name]
        base = self.counters(column, [EMPTY])
        if not base:
            return  # this engine or build writes no counters
        kept["events_noise"] = difference(self.counters(column, [EMPTY]), base)
        for name in names:
            if name not in kept["failures"]:
                kept["events"][name] = difference(self.counters(column, [EMPTY, name]), base)
                progress(column)(name, "events counted")
        self.save()

    def counters(self, column, names):
        run = run_suite(column, names, self.options.scale, self.options.timeout)
        return performance.counters(run.stats or {})


def first_line(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def difference(more, less):
    return {key: more[key] - less.get(key, 0) for key in more if more[key] != less.get(key, 0)}


def progress(column):
    return lambda name, text: print(f"{column.name:<28}{name:<14}{text}", flush=True)


def main():
    options = parse(sys.argv[1:])
    if not shutil.which("qemu-system-x86_64"):
        print("skipped: qemu-system-x86_64 is not installed")
        return 77
    comparison = Comparison(options)
    for repetition in range(options.repeat):
        print(f"repetition {repetition + 1} of {options.repeat}", flush=True)
        for column in comparison.columns:
            comparison.run_column(column)
    if not options.no_events:
        for column in comparison.columns:
            # The work is the same whatever the model; its mitigations are the kernel's.
            if column.kind == "strata" and column.details.get("cpu_model") == "default":
                comparison.count_events(column)
    performance.write(comparison.results, options.docs)
    print(f"wrote {options.docs}/performance.md and {options.json}")
    return 1 if any(c["failures"] for c in comparison.results["columns"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
"""Writes performance.md and its plots from what bench/compare/guest.py measured.

Usage: performance.py RESULTS_JSON DOCS_FOLDER
"""

import json
import math
import pathlib
import sys

from guest_suite import BOOT
from measured import table

# Times faster than QEMU TCG that each group is to be; groups without a figure are only shown.
WANTED = {"integer": 2.5, "floating point": 20.0, "x87": 20.0, "memory": 5.0, "os": 3.0,
          "operating system": 3.0, "boot": 1.0, "**all**": 4.0}
# Seconds below which a time is that of the console lines rather than of the test (small scales only).
SHORTEST = 0.001
BASE, NATIVE, EMPTY = "qemu-tcg", "native", "empty"

# Columns of the table of events: the first of the counters that there is, "+" sums all below a name.
EVENTS = [("instructions", ["vcpu.instructions"]), ("TLB misses", ["vcpu.tlb_misses"]),
          ("backend misses", ["translation.misses"]), ("page faults", ["vcpu.page_faults"]),
          ("traced writes", ["translation.traced_writes"]), ("exits", ["exits.+"]),
          ("blocks", ["vcpu.blocks_translated", "vcpu.blocks_decoded"]),
          ("invalidated", ["vcpu.blocks_invalidated"]), ("TLB flushes", ["vcpu.tlb_flushes"]),
          ("window fills", ["vcpu.window_fills"]), ("interpreted", ["vcpu.interpreted"])]
# Where a translating engine's instructions and its time went: parts of a whole, by counter.
SHARES = [("instructions in windows", "vcpu.window_instructions", "vcpu.instructions"),
          ("interpreted", "vcpu.interpreted", "vcpu.instructions"),
          ("time in windows", "vcpu.window_cycles", "vcpu.translated_cycles"),
          ("interpreting", "vcpu.interpreted_cycles", "vcpu.translated_cycles")]


def counters(stats, prefix=""):
    """Every whole number in the objects of a --stats file, by path: new counters need no change here.
    Lists are per vCPU or histograms, which the sums beside them cover."""
    flat = {}
    for key, value in stats.items():
        if isinstance(value, dict):
            flat.update(counters(value, f"{prefix}{key}."))
        elif isinstance(value, int) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


def event(counted, paths):
    for path in paths:
        if path.endswith("+"):
            return sum(v for k, v in counted.items() if k.startswith(path[:-1]))
        if path in counted:
            return counted[path]
    return 0


class Results:
    """The figures, and what follows from them."""

    def __init__(self, data):
        self.data = data
        self.tests = {n: g for n, g in data["tests"].items() if n != EMPTY}
        self.columns = data["columns"]
        self.tcg = [n for n, c in self.columns.items() if c["kind"] == "tcg"]
        self.strata = [n for n, c in self.columns.items() if c["kind"] == "strata"]

    def best(self, column, test):
        """Seconds, or None where there are none or not the right ones."""
        if test in self.columns[column]["failures"]:
            return None
        return min(self.columns[column]["seconds"].get(test, []), default=None)

    def ratio(self, over, under, test):
        a, b = self.best(over, test), self.best(under, test)
        return a / b if a and b and min(a, b) >= SHORTEST else None

    def gain(self, column, test):
        """Times faster than TCG."""
        return self.ratio(self.base(column), column, test)

    def base(self, column):
        """The TCG whose guest has the same mitigations on."""
        model = self.columns[column].get("cpu_model", "default")
        return BASE if model == "default" else f"{BASE} {model}"

    def slowdown(self, column, test):
        """Times slower than native."""
        return self.ratio(column, NATIVE, test)

    def groups(self):
        return {g: [n for n in self.tests if self.tests[n] == g] for g in self.tests.values()}

    def mean(self, of, column, names):
        """Geometric mean over the tests that have the figure, and how many these are."""
        figures = [f for f in (of(column, n) for n in names) if f]
        mean = math.exp(sum(map(math.log, figures)) / len(figures)) if figures else None
        return mean, len(figures)


def figure(value, digits=3):
    """As many decimals as make `digits` significant ones."""
    if value is None:
        return "–"
    places = max(0, digits - 1 - math.floor(math.log10(value))) if value > 0 else digits
    return f"{value:,.{min(places, 4)}f}"


def seconds_table(results):
    names = list(results.columns)
    return table(["test", *names],
                 [[f"`{t}`", *[figure(results.best(c, t)) for c in names]] for t in results.tests])


def mean_figure(results, of, column, tests):
    """A mean that lacks tests says so: what failed must not make it look better."""
    mean, count = results.mean(of, column, tests)
    return figure(mean) + (f" ({count} of {len(tests)})" if 0 < count < len(tests) else "")


def wanted_figure(wanted, group):
    return f"≥ {wanted[group]:g}" if group in wanted else ""


def means_table(results, of, columns, tests, wanted=None):
    """A row for each group and one for all tests."""
    groups = {g: [t for t in names if t in tests] for g, names in results.groups().items()}
    groups["**all**"] = tests
    more = ["wanted"] if wanted else []
    rows = [[group, len(names), *[mean_figure(results, of, c, names) for c in columns],
             *[wanted_figure(wanted, group) for _ in more]]
            for group, names in groups.items() if names]
    return table(["group", "tests", *columns, *more], rows)


def ratio_table(results, of, columns, tests, wanted=None):
    more = ["wanted"] if wanted else []
    rows = [[f"`{test}`", results.tests[test], *[figure(of(c, test)) for c in columns],
             *[wanted_figure(wanted, results.tests[test]) for _ in more]] for test in tests]
    return table(["test", "group", *columns, *more], rows)


def events_section(results, column):
    kept = results.columns[column]
    if not kept["events"]:
        return []
    rows = [[f"`{test}`", figure(results.best(column, test)),
             *[f"{event(counted, paths):,}" for _, paths in EVENTS]]
            for test, counted in kept["events"].items()]
    noise = kept.get("events_noise", {})
    rows.append(["*none, a second time*", "", *[f"{event(noise, paths):,}" for _, paths in EVENTS]])
    return [f"### {column}\n", table(["test", "s", *[name for name, _ in EVENTS]], rows)]


def share(counted, part, whole):
    return f"{100 * counted.get(part, 0) / counted[whole]:.3g} %" if counted.get(whole) else ""


def shares_section(results, column):
    """What is in no window and not interpreted went through the soft TLB."""
    rows = [[f"`{test}`", *[share(counted, part, whole) for _, part, whole in SHARES]]
            for test, counted in results.columns[column]["events"].items()
            if counted.get("vcpu.translated_cycles")]
    return [f"### {column}\n", table(["test", *[name for name, _, _ in SHARES]], rows)] if rows else []


def failures_section(results):
    rows = [[name, f"`{test}`", reason.replace("|", "\\|")] for name, c in results.columns.items()
            for test, reason in c["failures"].items()]
    return ["## What failed\n", table(["column", "test", "why"], rows)] if rows else []


def introduction(results):
    d = results.data
    repeat = max((len(s) for c in d["columns"].values() for s in c["seconds"].values()), default=0)
    empty = ", ".join(f"{name} {1000 * results.best(name, EMPTY):.2f}" for name in d["columns"]
                      if results.best(name, EMPTY))
    scale = "" if d["scale"] == 1 else f" **Scale {d['scale']:g}: not the full work.**"
    return ["# Performance\n", "Written by `bench/compare/guest.py`; do not edit.\n",
            f"{d['host']} Guest kernel {d['kernel']}, one vCPU. {d['strata']}; {d['qemu']}, "
            f"`-accel tcg -cpu max` with the family and model of Strata's CPU model, so that the "
            f"guest kernel has the same mitigations on in both.{scale}\n",
            "The tests are those of `bench/guest`: the same static program is the guest's init and "
            "the native program; each test does a fixed amount of work and its checksum must be the "
            "native one. Times are the host's, from the console line at a test's begin to that at its "
            f"end; what two lines cost with nothing between, in ms: {empty}. `boot` is from the start "
            f"of the program to init's first line. Each figure is the best of {repeat}, columns taking "
            "turns. Columns are `engine/mmu`; `mitigation-free` is Strata's CPU model of that name, "
            "beside the same TCG run.\n"]


def write(data, folder):
    """performance.md and its plots; without matplotlib the plots are left out and a line says so."""
    results = Results(data)
    folder = pathlib.Path(folder)
    plots = draw(results, folder)
    everything = [*results.tcg, *results.strata]
    tests = list(results.tests)
    native = [t for t in tests if t != BOOT]
    parts = [*introduction(results), "## Times faster than QEMU TCG, geometric means\n",
             means_table(results, results.gain, results.strata, tests, WANTED),
             "## Times slower than native, geometric means\n",
             means_table(results, results.slowdown, everything, native), *plots,
             "## Times faster than QEMU TCG\n",
             ratio_table(results, results.gain, results.strata, tests, WANTED),
             "## Times slower than native\n",
             ratio_table(results, results.slowdown, everything, native),
             "## Seconds\n", seconds_table(results), *failures_section(results)]
    events = [part for column in results.strata for part in events_section(results, column)]
    if events:
        parts += ["## Events of each test\n", "A guest that ran the test less one that ran none; the "
                  "last row is such a difference without a test: what smaller figures mean.\n", *events]
    shares = [part for column in results.strata for part in shares_section(results, column)]
    if shares:
        parts += ["## Where the time went\n", "Shares of a test's instructions, and of the time that "
                  "translated code and what it calls took, with a window and in the interpreter; the "
                  "rest went through the soft TLB.\n", *shares]
    (folder / "performance.md").write_text("\n".join(parts))


def draw(results, folder):
    try:
        import performance_plot
    except ImportError:
        print("no plots: matplotlib (Debian package python3-matplotlib) is missing", file=sys.stderr)
        return []
    return [f"![{title}]({name})\n" for title, name in performance_plot.draw(results, folder, WANTED)]


if __name__ == "__main__":
    write(json.loads(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2])

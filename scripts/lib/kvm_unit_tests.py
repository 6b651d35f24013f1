"""kvm-unit-tests under every backend and QEMU TCG; see scripts/kvm-unit-tests.

Exit code: 0 all that must pass passed, 1 something did not, 77 there is nothing to run.
"""

import argparse
import concurrent.futures
import configparser
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib

from debian_guest import backends

ROOT = pathlib.Path(__file__).parents[2]
NOTES = ROOT / "tests/kut/suites.toml"
TABLE = ROOT / "docs/conformance.md"
BEGIN, END = "<!-- kvm-unit-tests begin -->", "<!-- kvm-unit-tests end -->"
BACKENDS = ["shadow", "ept", "npt"]
ENGINES = ["interp", "bt"]
OURS = [f"{engine} {backend}" for engine in ENGINES for backend in BACKENDS]
QEMU = "qemu-system-x86_64"
# QEMU's names of features to ours, where a suite's CPU options mention one that we have.
FEATURES = {"x2apic": "x2apic", "tsc-deadline": "tsc_deadline", "pcid": "pcid", "invpcid": "invpcid",
            "umip": "umip", "pku": "pku", "rdtscp": "rdtscp", "xsave": "xsave"}
OK, FAILED, SKIPPED, ABORTED = 0, 1, 77, 127  # what the tests hand to isa-debug-exit


class Suite:
    """One section of unittests.cfg, on the build of one architecture."""

    def __init__(self, name, section, directory, arch):
        self.arch = arch
        self.name = name if arch == "x86_64" else f"{name} (i386)"
        self.kernel = directory / "x86" / section["file"]
        self.cpus = int(section.get("smp", "1").split(",")[0])
        self.test_args = section.get("test_args", "")
        self.qemu = shlex.split(section.get("qemu_params", section.get("extra_params", "")))
        self.timeout = int(section.get("timeout", "90").rstrip("s"))
        self.default = "nodefault" not in section.get("groups", "")

    @property
    def args(self):
        """What the shell would make of them at the moment the suite starts."""
        return " ".join(shlex.split(self.test_args.replace("`date +%s`", str(int(time.time())))))

    def option(self, name):
        return self.qemu[self.qemu.index(name) + 1] if name in self.qemu else ""

    def cpu_model(self):
        changes = []
        for item in self.option("-cpu").split(",")[1:]:
            if item.startswith("vendor="):
                changes.append(item)
            elif FEATURES.get(item[1:]):
                changes.append(item[0] + FEATURES[item[1:]])
        if "vmport=on" in self.option("-machine"):
            changes.append("+vmware_backdoor")
        return ",".join(["default", *changes])

    def strata(self, binary, column):
        engine, mmu = column.split()
        memory = self.option("-m").upper() or "128"
        return [binary, "run", "--test-devices", "--kernel", str(self.kernel), "--engine", engine,
                "--mmu", mmu, "--cpus", str(self.cpus), "--memory", memory, "--append", self.args,
                "--cpu-model", self.cpu_model(), "--timeout", str(self.timeout)]

    def qemu_command(self):
        cpu = "max" if self.option("-cpu").startswith("host") else self.option("-cpu") or "max"
        rest = list(self.qemu)
        if "-cpu" in rest:
            del rest[rest.index("-cpu"):rest.index("-cpu") + 2]
        rest = [r for r in rest if r != "-enable-kvm"]
        return [QEMU, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
                "-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4",
                "-device", "pci-testdev", "-machine", "accel=tcg", "-cpu", cpu,
                "-smp", str(self.cpus), "-kernel", str(self.kernel), "-append", self.args, *rest]


def suites(directory, arch):
    """All of the x86_64 build; of the i386 build, what only it has."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read(directory / "x86/unittests.cfg")
    for name in config.sections():
        if config[name].get("arch", "x86_64") == arch:
            yield Suite(name, config[name], directory, arch)


def verdict(code, output, ours):
    """pass, fail, skip, timeout or an ending, from the exit code of the program that ran it."""
    if ours and not 64 <= code < 128:
        return {5: "timeout", 4: "triple fault", 3: "reset"}.get(code, f"error {code}")
    value = code - 64 if ours else code >> 1
    if not ours and not code & 1:
        return f"error {code}"
    if value == OK:
        return "pass"
    if value == SKIPPED & (63 if ours else 127):
        return "skip"
    failures = len(re.findall(r"^FAIL", output, re.M))
    return f"fail ({failures})" if failures else "fail"


def run(suite, where, args):
    ours = where != "qemu"
    if not suite.kernel.exists():
        return "not built", ""
    command = suite.strata(args.strata, where) if ours else suite.qemu_command()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=suite.timeout + 15, check=False)
    except subprocess.TimeoutExpired as late:
        return "timeout", (late.stdout or b"").decode(errors="replace")
    output = done.stdout.decode(errors="replace")
    return verdict(done.returncode, output, ours), output


def run_all(chosen, columns, args):
    """{(suite name, column): verdict}, with a line of progress for each."""
    results = {}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(run, s, c, args): (s, c) for s in chosen for c in columns}
        for number, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            suite, column = jobs[job]
            results[suite.name, column], output = job.result()
            print(f"[{number}/{len(jobs)}] {suite.name} {column}: {results[suite.name, column]}",
                  flush=True)
            if args.results:  # at once: the next suite may be the one that somebody interrupts
                remember(args.results, {(suite.name, column): results[suite.name, column]})
            if args.logs:
                pathlib.Path(args.logs).mkdir(parents=True, exist_ok=True)
                name = f"{suite.name}-{column}".replace(" ", "-")
                (pathlib.Path(args.logs) / f"{name}.log").write_text(output)
    return results


def table(chosen, columns, results, reasons):
    title = {"qemu": "QEMU TCG"}
    heads = ["suite", *[title.get(c, f"strata {c}") for c in columns]]
    if "qemu" in columns:
        version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
        heads[-1] += " " + re.search(r"version (\d+\.\d+)", version.stdout).group(1)
    rows = [heads, ["---"] * len(heads)]
    rows += [[s.name, *[results.get((s.name, c), "not run") for c in columns]] for s in chosen]
    text = "\n".join("| " + " | ".join(r) + " |" for r in rows) + "\n"
    passed = ", ".join(f"{h} {sum(results.get((s.name, c)) == 'pass' for s in chosen)}"
                       for h, c in zip(heads[1:], columns))
    text += f"\nPassing, of {len(chosen)}: {passed}.\n"
    missing = [s for s in chosen
               if any(results.get((s.name, c)) != "pass" for c in columns if c != "qemu")]
    if missing:
        text += "\nWhat does not pass in Strata, and why:\n\n"
    for s in missing:
        text += f"- {s.name}: {reason(s.name, reasons)}\n"
    return text


def left_out(suites, reasons):
    """What is not run at all, by reason."""
    by_reason = {}
    for s in suites:
        by_reason.setdefault(reason(s.name, reasons), []).append(s.name)
    lines = [f"- {', '.join(names)}: {why}" for why, names in by_reason.items()]
    return "\nNot run, and why:\n\n" + "\n".join(lines) + "\n" if lines else ""


def reason(name, reasons):
    """The note for `name`, or for the longest suite name that begins it (vmx_... under vmx)."""
    known = [r for r in reasons if name.startswith(r)]
    return reasons[max(known, key=len)] if known else "not looked into"


def remembered(path):
    """The results of all runs so far in `path`."""
    file = pathlib.Path(path)
    known = json.loads(file.read_text()) if file.exists() else []
    return {(name, column): result for name, column, result in known}


def remember(path, results):
    everything = remembered(path) | results
    pathlib.Path(path).write_text(
        json.dumps([[*key, result] for key, result in sorted(everything.items())]))


def write(text):
    old = TABLE.read_text()
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    TABLE.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def options():
    parser = argparse.ArgumentParser(prog="kvm-unit-tests", description=__doc__)
    parser.add_argument("--strata", default=str(ROOT / "build/release/bin/strata"))
    parser.add_argument("--only", help="suites, by commas")
    parser.add_argument("--engine", default=",".join(ENGINES),
                        help="engines, by commas; those that the build lacks are left out")
    parser.add_argument("--on", default=",".join([*BACKENDS, "qemu"]),
                        help="backends, by commas, and qemu")
    parser.add_argument("--required", action="store_true", help="the suites that must pass, ours only")
    parser.add_argument("--write", action="store_true", help=f"the table into {TABLE.name}")
    parser.add_argument("--results", help="a file that collects the results of several runs; the "
                                          "table is then of all of them")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--logs", help="a directory for each run's output")
    return parser.parse_args()


def columns_of(args):
    """"ENGINE BACKEND" for what the build has of what was asked for, and "qemu"."""
    wanted = args.on.split(",")
    ours = [f"{engine} {backend}" for engine in args.engine.split(",")
            for backend in backends(args.strata, engine) if backend in wanted]
    return [*(c for c in OURS if c in ours), *(["qemu"] if "qemu" in wanted else [])]


def main():
    args = options()
    if "STRATA_KUT_DIR" not in os.environ:
        print("skipped: STRATA_KUT_DIR is unset")
        return 77
    notes = tomllib.loads(NOTES.read_text())
    everything = list(suites(pathlib.Path(os.environ["STRATA_KUT_DIR"]), "x86_64"))
    if "STRATA_KUT32_DIR" in os.environ:
        everything += suites(pathlib.Path(os.environ["STRATA_KUT32_DIR"]), "i386")
    for suite in everything:
        suite.timeout = max(suite.timeout, notes["seconds"].get(suite.name, 0))
    chosen = everything
    columns = columns_of(args)
    if args.required:
        chosen = [s for s in chosen if s.name in notes["required"]]
        columns = [c for c in columns if c != "qemu"]
    elif args.only:
        chosen = [s for s in chosen if s.name in args.only.split(",")]
    else:
        chosen = [s for s in chosen if s.default]
    if shutil.which(QEMU) is None:
        columns = [c for c in columns if c != "qemu"]
    results = run_all(chosen, columns, args)
    shown = chosen
    if args.results:
        results = remembered(args.results)
        shown = [s for s in everything if any(name == s.name for name, _ in results)]
        columns = [c for c in [*OURS, "qemu"] if any(column == c for _, column in results)]
    text = table(shown, columns, results, notes["reasons"])
    text += left_out([s for s in everything if s not in shown], notes["reasons"])
    print("\n" + text)
    if args.write:
        write(text)
    bad = [f"{name} {column}" for (name, column), result in results.items()
           if name in notes["required"] and column != "qemu" and result != "pass"]
    if bad:
        print("these must pass: " + ", ".join(sorted(bad)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs bench/guest once, in a guest or natively, and times its tests by when their lines arrive."""

import pathlib
import re
import shutil
import subprocess
import tempfile

from console_session import ConsoleError, ConsoleSession
from debian_guest import read_stats

LINE = r"BENCH (\S+) (begin|end|failed)(?: \w+=(\S+))?\r?\n"
BOOT = "boot"  # not a test of the program: from the start of the VMM to the first line of init
MEMORY_MIB = 512


def list_tests(binary):
    """The tests' names and groups, in the order in which they run."""
    text = subprocess.run([binary, "list"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("\t") for line in text.splitlines())


def make_initramfs(binary, out):
    pack = pathlib.Path(__file__).resolve().parent / "pack-initramfs"
    with tempfile.TemporaryDirectory() as root:
        shutil.copy(binary, f"{root}/init")
        subprocess.run([pack, root, out], check=True)


def kernel_arguments(names, scale):
    return f"console=ttyS0 bench={','.join(names)} scale={scale:g}"


class Column:
    """One way to run the suite. `command(arguments, stats)` makes the command line."""

    def __init__(self, name, kind, command, details=None):
        self.name, self.kind, self.command, self.details = name, kind, command, details or {}


def native_column(binary):
    # The kernel's arguments are the program's: it takes what it knows and leaves the rest.
    return Column("native", "native", lambda arguments, stats: [binary, *arguments.split()])


# What a kernel chooses its mitigations by: the identities of hypervisor/cpu/models, for a guest that
# has the same ones on in both programs. `-cpu max` alone claims a processor that needs none.
IDENTITY = {"default": "vendor=GenuineIntel,family=6,model=79,stepping=1",
            "mitigation-free": "vendor=GenuineIntel,family=6,model=28,stepping=10"}


def tcg_column(kernel, initrd, machine, model="default"):
    def command(arguments, stats):
        return ["qemu-system-x86_64", "-accel", "tcg", "-cpu", f"max,{IDENTITY[model]}", "-smp", "1",
                "-machine",
                machine, "-m", str(MEMORY_MIB), "-nographic", "-no-reboot", "-kernel", kernel,
                "-initrd", initrd, "-append", arguments]

    name = "qemu-tcg" + ("" if model == "default" else f" {model}")
    return Column(name, "tcg", command, {"cpu_model": model})


def strata_column(strata, kernel, initrd, engine, mmu, model="default"):
    def command(arguments, stats):
        return [strata, "run", "--engine", engine, "--mmu", mmu, "--cpu-model", model, "--kernel",
                kernel, "--initrd", initrd, "--append", arguments, "--memory", f"{MEMORY_MIB}M",
                "--stats", stats]

    name = f"{engine}/{mmu}" + ("" if model == "default" else f" {model}")
    return Column(name, "strata", command, {"engine": engine, "mmu": mmu, "cpu_model": model})


class Run:
    """What one run of the suite gave: seconds, checksums and failures by test, counters at the end."""

    def __init__(self):
        self.seconds, self.checksums, self.failures, self.stats = {}, {}, {}, None

    def untried(self, names):
        return [n for n in names if n not in self.seconds and n not in self.failures]


def run_suite(column, names, scale, timeout, report=lambda name, text: None):
    """Runs all of `names`. After a hang or an early end another guest goes on behind the test that
    was at fault, so that one test costs one figure."""
    result, left = Run(), list(names)
    while left:
        error = _Session(column, left, scale, timeout, result, report).run()
        if not error:
            break
        if len(result.untried(left)) == len(left):  # the suite did not begin
            result.failures.update({name: error for name in left})
            report("all tests", f"failed: {error}")
            break
        left = result.untried(left)
    return result


class _Session:
    """One guest, or one native process."""

    def __init__(self, column, names, scale, timeout, result, report):
        self.column, self.timeout, self.result, self.report = column, timeout, result, report
        self.names, self.arguments = names, kernel_arguments(names, scale)
        self.since = None  # when the running test began; None before the suite did

    def run(self):
        """Returns what went wrong, if anything did."""
        with tempfile.TemporaryDirectory() as scratch:
            stats = pathlib.Path(scratch) / "stats.json"
            session = ConsoleSession(self.column.command(self.arguments, stats))
            try:
                self._follow(session)
                return None
            except ConsoleError:
                reason = self._reason(session)
                # The test at fault may not have come to its first line.
                if self.since is not None and self.result.untried(self.names):
                    self._failed(self.result.untried(self.names)[0], reason)
                return reason
            finally:
                session.kill()
                if stats.exists():
                    self.result.stats = read_stats(stats)

    def _follow(self, session):
        booted, _ = session.expect_match(r"BENCH suite begin[^\n]*\n", max(self.timeout, 120))
        if self.column.kind != "native":
            self.result.seconds.setdefault(BOOT, booted)
        self.since = booted
        while True:
            at, line = session.expect_match(LINE, self.timeout)
            if line[1] == "suite":
                break
            self._take(at, *line.groups())
        # Counters are written at the end, so the end matters to those who want them only.
        session.finish(60)

    def _reason(self, session):
        """A hang or an end, and the console's last line: what a panic or an engine's error said."""
        code = session.process.poll()
        what = f"nothing for {self.timeout:g} s" if code is None else f"ended with exit code {code}"
        lines = [line for line in session.text.split("\n") if line.strip()]
        return f"{what}; console: {lines[-1].strip() if lines else 'empty'}"

    def _take(self, at, name, what, details):
        if what == "begin":
            self.since = at
        elif what == "end":
            self.result.seconds[name] = at - self.since
            self.result.checksums[name] = details
            self.report(name, f"{at - self.since:.3f} s")
        else:
            self._failed(name, f"the test died: {details}")

    def _failed(self, name, reason):
        self.result.failures[name] = reason
        self.report(name, f"failed: {reason}")

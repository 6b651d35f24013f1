#!/usr/bin/env python3
"""The in-tree guest under --engine kvm, with as many of its checks as this host's /dev/kvm can run.

Usage: kvm_test.py STRATA GUEST      (GUEST: strata_guest.elf)

Exit code 77, with the reason: there is no KVM that runs guests at all.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

STRATA, GUEST = sys.argv[1], sys.argv[2]

# Checks that need what the note may say is missing, but show it otherwise than by an instruction
# that KVM cannot emulate.
NEEDS = {"ring 3 and SYSCALL": ["user mode", "user interrupt", "user is kept out"]}
INCOMPLETE = "note: this host's /dev/kvm is incomplete"
CANNOT = "the host's KVM cannot emulate the instruction"
FINISHED = re.compile(r"^ok \d+ (.*)$", re.MULTILINE)
LEFT_OUT = re.compile(r"^skipped: (.*)$", re.MULTILINE)


def run(*options):
    return subprocess.run([STRATA, "run", "--engine", "kvm", "--memory", "64M", "--timeout", "240",
                           *options], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=300)


def run_without(checks, stats_file):
    words = " ".join(["auto", *("skip=" + name.replace(" ", "-") for name in checks)])
    return run("--kernel", GUEST, "--append", words, "--stats", str(stats_file))


def checks_of_the_guest():
    """The names of the guest's checks in order, from a run under the interpreter."""
    done = subprocess.run([STRATA, "run", "--kernel", GUEST, "--append", "auto", "--memory", "64M",
                           "--engine", "interp"], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors="replace", timeout=300)
    return FINISHED.findall(done.stdout)


def fail(why, done):
    print(f"{why}\n--- exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    sys.exit(1)


def main():
    # A wrong --mmu is refused before the host is asked.
    done = run("--kernel", GUEST, "--mmu", "ept")
    if done.returncode != 2 or "--mmu: 'ept' does not work with engine kvm" not in done.stderr:
        fail("--mmu ept was not refused", done)

    with tempfile.TemporaryDirectory() as scratch:
        stats_file = pathlib.Path(scratch) / "stats.json"
        done = run_without([], stats_file)
        if done.returncode == 2 and "--engine kvm: " in done.stderr:
            print(f"skipped: {done.stderr.strip()}")
            sys.exit(77)
        incomplete = INCOMPLETE in done.stderr
        names = checks_of_the_guest() if incomplete else []
        skipped = []
        for part, checks in NEEDS.items():
            if incomplete and part in done.stderr.splitlines()[0]:
                print(f"skipped on this host for want of {part}: {', '.join(checks)}")
                skipped += checks
        if skipped:
            done = run_without(skipped, stats_file)
        # Each run ends at the first check that this host cannot execute: which, and why.
        while incomplete and done.returncode == 1 and CANNOT in done.stderr:
            print("skipped on this host:", end=" ")
            past = set(FINISHED.findall(done.stdout)) | set(LEFT_OUT.findall(done.stdout))
            stopped = [name for name in names if name not in past]
            reason = next(line for line in done.stderr.splitlines() if "the VM ended by" in line)
            if not stopped or len(skipped) == len(names):
                fail("the guest stops outside its checks", done)
            print(f"{stopped[0]}: {reason.split(': ', 2)[-1]}")
            skipped.append(stopped[0])
            done = run_without(skipped, stats_file)
        print(done.stdout)
        if done.returncode != 0 or ", 0 failed" not in done.stdout:
            fail("the guest's checks failed", done)
        stats = json.loads(stats_file.read_text())
        if stats["engine"] != "kvm" or stats["backend"]["touches_served"] == 0:
            fail(f"statistics of another engine: {stats}", done)
        # What the guest never touched costs nothing, and the P2M knows.
        if not 0 < stats["p2m"]["private_pages"] * 4096 < 32 << 20:
            fail(f"the P2M lost sight of the guest's memory: {stats['p2m']}", done)


main()

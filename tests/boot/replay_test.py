#!/usr/bin/env python3
"""Exact runs of the in-tree guest: an instruction-count clock that repeats, recordings replayed
under every backend, saved VMs that end as the unsaved ones.

Usage: replay_test.py STRATA GUEST MMU...      (GUEST: strata_guest.elf)
"""

import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from debian_guest import backends  # noqa: E402

STRATA, GUEST, *MMUS = sys.argv[1:]
INTERP = ["--engine", "interp"]
# What runs and replays exactly: the interpreter on every backend, then the translator if it is here.
WAYS = [("interp", mmu) for mmu in MMUS] + [("bt", mmu) for mmu in backends(STRATA, "bt")]
EXACT = ["--clock", "instructions"]


def way(engine, mmu):
    return ["--engine", engine, "--mmu", mmu]


def strata(*options, timeout=240, **kwargs):
    return subprocess.run([STRATA, *map(str, options)], stdin=kwargs.pop("stdin", subprocess.DEVNULL),
                          capture_output=True, text=True, errors="replace", timeout=timeout, **kwargs)


class Exact(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="strata-replay-")
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def run_guest(self, *options, code=0):
        """Output, instructions and checksum of a run."""
        stats = self.directory / "stats.json"
        done = strata("run", "--memory", "64M", "--stats", stats, *options)
        self.assertEqual(done.returncode, code, done.stderr)
        read = json.loads(stats.read_text())
        return done.stdout, read["vcpu"]["instructions"], read["memory_checksum"]

    def guest(self, *options, **kwargs):
        return self.run_guest("--kernel", GUEST, "--append", "auto", *options, **kwargs)

    def replay(self, recording, *options, code=0):
        done = strata("replay", recording, *options)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def one_line(self, done, *parts):
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)

    def test_two_runs_are_one(self):
        reference = self.guest(*EXACT, *way(*WAYS[0]))
        self.assertIn("strata guest", reference[0])
        for other in WAYS:
            self.assertEqual(self.guest(*EXACT, *way(*other)), reference, other)

    def test_a_recording_replays_under_every_engine_and_backend(self):
        recording = self.directory / "guest.rec"
        for clock in (["--clock", "host"], EXACT):
            for recorder in (WAYS[0], WAYS[-1]):
                _, instructions, checksum = self.guest("--record", recording, *way(*recorder), *clock)
                for other in WAYS:
                    done = self.replay(recording, *way(*other))
                    self.one_line(done, "ended as recorded", checksum,
                                  f"{instructions} instructions")

    def test_console_input_is_recorded(self):
        recording = self.directory / "typed.rec"
        process = subprocess.Popen(
            [STRATA, "run", "--kernel", GUEST, "--memory", "64M", "--record", str(recording),
             *INTERP],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in ("echo one", "mem", "poweroff"):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            time.sleep(0.1)
        output, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn("one", output)
        for other in WAYS:
            self.replay(recording, *way(*other))

    def test_a_replay_stops_and_steps(self):
        recording = self.directory / "guest.rec"
        self.guest("--record", recording, *INTERP)
        traces = [self.replay(recording, *way(*other), "--until", 100_000, "--step", 50).stdout
                  for other in WAYS]
        self.assertEqual(traces[0].count("\n"), 50)
        self.assertTrue(traces[0].startswith("100000 rip="))
        self.assertEqual(set(traces), {traces[0]})
        self.assertIn("CR3", self.replay(recording, "--until", 5000, "--dump-state").stdout)

    def save_and_load(self, cpus, saves):
        exact = [*EXACT, "--cpus", cpus]
        output, instructions, checksum = self.guest(*exact)
        saved = self.directory / "guest.vm"
        numbers = random.Random(cpus)
        for i in range(saves):
            at = numbers.randrange(1, instructions)
            saver, other = WAYS[i % len(WAYS)], WAYS[-1 - i % len(WAYS)]
            done = strata("run", "--kernel", GUEST, "--append", "auto", "--memory", "64M", *exact,
                          *way(*saver), "--save", saved, "--save-at", at)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.one_line(done, f"at instruction {at}")
            rest, last, end = self.run_guest("--load", saved, *way(*other))
            self.assertEqual(done.stdout + rest, output, f"saved at {at}")
            self.assertEqual(end, checksum, f"saved at {at} under {saver}, loaded under {other}")
            self.assertEqual(last, instructions, f"saved at {at}")

    def test_saved_vms_end_as_the_unsaved(self):
        self.save_and_load(cpus=1, saves=6)

    def test_vms_of_several_vcpus_do_so_too(self):
        self.save_and_load(cpus=4, saves=3)

    def test_several_vcpus_replay_under_every_engine_and_backend(self):
        recording = self.directory / "guest.rec"
        for recorder in (WAYS[0], WAYS[-1]):
            _, instructions, checksum = self.guest("--cpus", 4, "--record", recording,
                                                   *way(*recorder))
            for other in WAYS:
                done = self.replay(recording, *way(*other))
                self.one_line(done, "ended as recorded", checksum, f"{instructions} instructions")

    def test_a_loaded_vm_can_be_recorded(self):
        saved, recording = self.directory / "guest.vm", self.directory / "rest.rec"
        strata("run", "--kernel", GUEST, "--append", "auto", "--memory", "64M", "--save", saved,
               "--save-at", 100_000, *EXACT, *INTERP)
        _, _, checksum = self.run_guest("--load", saved, "--record", recording, *INTERP)
        for other in WAYS:
            self.one_line(self.replay(recording, *way(*other)), checksum)

    def test_sigusr1_saves(self):
        saved = self.directory / "guest.vm"
        process = subprocess.Popen([STRATA, "run", "--kernel", GUEST, "--memory", "64M", "--save",
                                    str(saved), *EXACT, *INTERP],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.assertIn("strata guest", process.stdout.readline())
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        done = strata("run", "--load", saved, *INTERP, stdin=None, input="poweroff\n")
        self.assertEqual(done.returncode, 0, done.stderr)

    def check(self, *options):
        """A run in lock-step that shows no difference, and how many states were compared."""
        done = strata("run", "--kernel", GUEST, "--append", "auto", "--memory", "64M", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.one_line(done, "all equal")
        return done.stdout, int(done.stderr.split("lock-step: ")[1].split()[0])

    def translators(self):
        return {"bt"} & {line.split(" ")[0] for line in strata("--version").stdout.splitlines()}

    def test_lock_step(self):
        plain = self.guest(*EXACT, *INTERP)[0]
        for mmu in MMUS:
            output, states = self.check("--check", "interp," + mmu, *way("interp", MMUS[0]))
            self.assertEqual(output, plain)
            self.assertGreater(states, 50_000)
        self.check("--check", "--check-every", 1000, "--check-from", 50_000, *INTERP)
        for engine in self.translators():
            for mmu in MMUS:
                for every in (0, 1, 1000):
                    self.check("--engine", engine, "--mmu", mmu, "--check=interp", "--check-every",
                               every)
        self.check("--check", "--check-every", 20_000, "--cpus", 4, *INTERP)

    def test_lock_step_that_is_not_possible(self):
        for target, said in (("kvm", "exact"), ("auto", "name"), ("none", "not built in"), ("interp,none", "none")):
            done = strata("run", "--kernel", GUEST, "--check", target)
            self.assertEqual(done.returncode, 2)
            self.one_line(done, "--check", said)

    def test_what_is_no_recording_is_refused(self):
        recording, saved = self.directory / "guest.rec", self.directory / "guest.vm"
        self.guest("--record", recording, *INTERP)
        strata("run", "--kernel", GUEST, "--memory", "64M", "--save", saved, "--save-at", 1000, *EXACT,
               *INTERP)
        for wrong, said in ((GUEST, "neither"), (saved, "is a saved VM"), ("/nowhere", "cannot")):
            self.one_line(self.replay(wrong, code=2), said)
        for wrong in (GUEST, recording):
            done = strata("run", "--load", wrong)
            self.assertEqual(done.returncode, 2)
            self.one_line(done, "strata run: --load")
        whole = recording.read_bytes()
        damaged = self.directory / "damaged"
        numbers = random.Random(5)
        for i in range(12):
            at = numbers.randrange(16, len(whole))
            damaged.write_bytes(whole[:at] if i % 2 else
                                whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            done = strata("replay", damaged)
            self.assertIn(done.returncode, (2, 8), at)
            self.one_line(done, "damaged")
        whole = saved.read_bytes()
        for i in range(12):
            at = numbers.randrange(16, len(whole))
            damaged.write_bytes(whole[:at] if i % 2 else
                                whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            done = strata("run", "--load", damaged)
            self.assertEqual(done.returncode, 2, at)
            self.one_line(done, "damaged")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)

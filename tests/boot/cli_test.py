#!/usr/bin/env python3
"""strata run as a user meets it: exit codes of every ending, and one clear line for what is wrong.

Usage: cli_test.py STRATA GUEST      (GUEST: strata_guest.elf)
"""

import json
import os
import pathlib
import pty
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleSession  # noqa: E402
from debian_guest import backends  # noqa: E402

STRATA, GUEST = sys.argv[1], sys.argv[2]
PROMPT = "guest> "


def run(*options, timeout=120):
    return subprocess.run([STRATA, "run", *options], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors="replace", timeout=timeout)


def own_engines():
    return [engine for engine in ("interp", "bt") if backends(STRATA, engine)]


def combinations():
    """Every engine of this build but the host's, with every backend and a limited shadow."""
    for engine in own_engines():
        mmus = backends(STRATA, engine)
        if "shadow" in mmus:
            mmus.append("shadow,no-unsync,no-flood,no-prefetch,no-global,no-pcid,no-large,limit=1M")
        yield from ((engine, mmu) for mmu in mmus)


class Endings(unittest.TestCase):
    def guest(self, *options, engine="interp"):
        return ConsoleSession([STRATA, "run", "--kernel", GUEST, "--memory", "64M", "--engine",
                               engine, *options])

    def end_by(self, command, code, *said):
        for engine in own_engines():
            with self.subTest(engine=engine):
                session = self.guest(engine=engine)
                session.expect(PROMPT, 60)
                session.send(command + "\n")
                self.assertEqual(session.finish(60), code)
                for text in said:
                    self.assertIn(text, session.text)

    def test_power_off_is_0(self):
        self.end_by("poweroff", 0)

    def test_reset_is_3(self):
        self.end_by("reset", 3)

    def test_triple_fault_is_4_and_shows_the_vcpu(self):
        self.end_by("crash", 4, "triple-fault", "CR3")

    def test_timeout_is_5(self):
        session = self.guest("--timeout", "2")
        session.expect(PROMPT, 60)
        self.assertEqual(session.finish(60), 5)

    def test_quitting_from_the_console_is_6(self):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(STRATA, [STRATA, "run", "--kernel", GUEST, "--memory", "64M"])
        seen = b""
        while PROMPT.encode() not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"\x01x")
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 6)

    def test_the_guests_own_checks_pass_under_every_engine_and_backend(self):
        self.assertTrue(backends(STRATA, "interp"))
        for engine, mmu in combinations():
            for cpus in (1, 2, 4, 8):
                with self.subTest(engine=engine, mmu=mmu, cpus=cpus):
                    done = run("--kernel", GUEST, "--append", "auto", "--memory", "64M", "--engine",
                               engine, "--mmu", mmu, "--cpus", str(cpus))
                    self.assertEqual(done.returncode, 0, done.stdout)
                    self.assertIn(", 0 failed", done.stdout)
                    self.assertEqual("smp: x2apic ipis" in done.stdout, cpus > 1)


class EngineAuto(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.stats_file = pathlib.Path(scratch.name) / "stats.json"
        self.recording = pathlib.Path(scratch.name) / "run.rec"

    def run_guest(self, *options):
        """What the run said on stderr and its statistics."""
        done = run("--kernel", GUEST, "--append", "auto", "--memory", "64M", "--stats",
                   str(self.stats_file), *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(", 0 failed", done.stdout)
        return done.stderr, json.loads(self.stats_file.read_text())

    def check_note(self, said, stats):
        """The same in one line to the user and in the statistics."""
        self.assertIn(f"strata run: note: engine {stats['engine']}, {stats['engine_reason']}\n", said)
        self.assertEqual(said.count("\n"), 1, said)
        self.assertTrue(stats["engine_reason"].startswith("chosen by auto; "), stats)

    def test_is_the_default_and_says_what_it_is(self):
        for options in ([], ["--engine", "auto"]):
            with self.subTest(options=options):
                said, stats = self.run_guest(*options)
                self.check_note(said, stats)
                # A whole KVM, or the fastest that needs none and has nothing to do without.
                self.assertIn(stats["engine"], ("kvm", own_engines()[-1]))

    def test_a_run_that_counts_gets_an_engine_that_counts(self):
        for option, value in (("--clock", "instructions"), ("--record", str(self.recording))):
            with self.subTest(option=option):
                said, stats = self.run_guest(option, value)
                self.check_note(said, stats)
                self.assertEqual(stats["engine"], own_engines()[-1])
                if backends(STRATA, "kvm"):
                    self.assertIn(f"kvm: {option} needs exact", stats["engine_reason"])

    def test_a_backend_gets_an_engine_that_has_it(self):
        for mmu in backends(STRATA, "interp"):
            with self.subTest(mmu=mmu):
                said, stats = self.run_guest("--mmu", mmu)
                self.check_note(said, stats)
                self.assertEqual((stats["engine"], stats["mmu"]), (own_engines()[-1], mmu))

    def test_a_named_engine_is_that_one_without_a_word(self):
        for engine in own_engines():
            with self.subTest(engine=engine):
                said, stats = self.run_guest("--engine", engine)
                self.assertEqual(said, "")
                self.assertEqual(stats["engine"], engine)
                self.assertEqual(stats["engine_reason"], "named by --engine")


class Windows(unittest.TestCase):
    def instructions_with_windows(self, use):
        if "bt" not in own_engines():
            self.skipTest("no engine bt in this build")
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "stats.json"
            done = run("--kernel", GUEST, "--append", "auto", "--memory", "64M", "--engine", "bt",
                       "--windows", use, "--stats", str(file))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(", 0 failed", done.stdout)
            stats = json.loads(file.read_text())
        self.assertEqual(stats["windows"], use)
        return stats["vcpu"]["window_instructions"]

    def test_as_asked(self):
        self.assertEqual(self.instructions_with_windows("never"), 0)
        self.assertGreater(self.instructions_with_windows("always"), 0)


class Mistakes(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)

    def file(self, name, content):
        path = pathlib.Path(self.scratch.name) / name
        path.write_bytes(content)
        return str(path)

    def refused(self, names, *options):
        done = run(*options)
        self.assertEqual(done.returncode, 2, f"{options}: {done.stderr}")
        self.assertEqual(done.stderr.count("\n"), 1, f"one line: {done.stderr!r}")
        self.assertIn(names, done.stderr)

    def test_options(self):
        for names, options in [
                ("--kernel", []),
                ("--kernel", ["--kernel", "/nonexistent/kernel"]),
                ("--memory", ["--kernel", GUEST, "--memory", "12Q"]),
                ("--memory", ["--kernel", GUEST, "--memory", "1M"]),
                ("--memory", ["--kernel", GUEST, "--memory", "99999999999999999999G"]),
                ("--memory", ["--kernel", GUEST, "--memory", "400G"]),
                ("--mmu", ["--kernel", GUEST, "--mmu", "fast"]),
                ("takes no 'no-unsync'", ["--kernel", GUEST, "--mmu", "auto,no-unsync"]),
                ("--engine", ["--kernel", GUEST, "--engine", "warp"]),
                ("--windows", ["--kernel", GUEST, "--windows", "often"]),
                ("only engine bt", ["--kernel", GUEST, "--engine", "interp", "--windows", "never"]),
                ("--cpus", ["--kernel", GUEST, "--cpus", "0"]),
                ("--cpus", ["--kernel", GUEST, "--cpus", "9"]),
                ("--cpu-model", ["--kernel", GUEST, "--cpu-model", "z80"]),
                ("--initrd", ["--kernel", GUEST, "--initrd", "/nonexistent/initrd"]),
                ("--serial", ["--kernel", GUEST, "--serial", "/nonexistent/dir/file"]),
                ("--console", ["--kernel", GUEST, "--console", "hvc0"]),
                ("--clock can not repeat", ["--kernel", GUEST, "--console", "virtio", "--clock",
                                            "instructions"]),
                ("--disk", ["--kernel", GUEST, "--disk", ""]),
                ("'rw' is not", ["--kernel", GUEST, "--disk", "disk.raw,rw"]),
                ("'overlay=' is not", ["--kernel", GUEST, "--disk", "disk.raw,ro,overlay="]),
                ("--disk", ["--kernel", GUEST, "--disk", "/nonexistent/disk"]),
                ("--disk", ["--kernel", GUEST, *["--disk", "/nonexistent/disk"] * 17]),
                ("--stats", ["--kernel", GUEST, "--stats", "/nonexistent/dir/file"])]:
            with self.subTest(options=options):
                self.refused(names, *options)

    def test_options_of_the_shadow_backend(self):
        if "shadow" not in backends(STRATA, "interp"):
            self.skipTest("this build has no shadow backend")
        for names, mmu in [("no-prefetch", "shadow,no-sync"), ("does not know ''", "shadow,"),
                           ("limit=8M", "shadow,limit=big"), ("limit=8M", "shadow,limit=0")]:
            with self.subTest(mmu=mmu):
                self.refused(names, "--kernel", GUEST, "--mmu", mmu)

    def test_kernels(self):
        whole = pathlib.Path(GUEST).read_bytes()
        wrong_machine = bytearray(whole)
        wrong_machine[18] = 0xB7  # AArch64
        for name, content in [("empty", b""), ("text", b"hello\n" * 100), ("half", whole[:300]),
                              ("cut", whole[:len(whole) // 2]), ("arm", bytes(wrong_machine)),
                              ("zeroes", bytes(1 << 20))]:
            with self.subTest(kernel=name):
                self.refused("--kernel", "--kernel", self.file(name, content))

    def test_initrd_that_does_not_fit(self):
        self.refused("initrd", "--kernel", GUEST, "--memory", "16M", "--initrd",
                     self.file("initrd", bytes(15 << 20)))

    def test_configs(self):
        for name, content in [("not json", b"{"), ("array", b"[]"), ("unknown", b'{"kernal": "x"}'),
                              ("type", b'{"kernel": 7}'), ("cpus", b'{"cpus": -1}'),
                              ("memory", b'{"memory": {}}'), ("disks", b'{"disks": "disk.raw"}'),
                              ("disk", b'{"disks": ["disk.raw,rw"]}'),
                              ("binary", bytes(range(256))),
                              ("deep", b"[" * 100000)]:
            with self.subTest(config=name):
                path = self.file("vm.json", content)
                self.refused(path, "--config", path)

    def test_flags_override_the_config(self):
        path = self.file("vm.json", json.dumps({"kernel": GUEST, "append": "auto",
                                                "memory": "1M"}).encode())
        self.refused("--memory", "--config", path)
        self.assertEqual(run("--config", path, "--memory", "64M").returncode, 0)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])

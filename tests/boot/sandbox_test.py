#!/usr/bin/env python3
"""A running VM seen from the host: what its process may still do.

Usage: sandbox_test.py STRATA GUEST      (GUEST: strata_guest.elf)
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleSession  # noqa: E402

STRATA, GUEST = sys.argv[1], sys.argv[2]
PROMPT = "guest> "
NO_CAPABILITIES = {"CapInh": "0" * 16, "CapPrm": "0" * 16, "CapEff": "0" * 16, "CapAmb": "0" * 16}
CONFINED = {"NoNewPrivs": "1", "Seccomp": "2", **NO_CAPABILITIES}


def threads_of(pid):
    """/proc/PID/task/*/status as one dictionary each."""
    found = []
    for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        lines = (line.split(":", 1) for line in status.read_text().splitlines())
        found.append({key: value.strip() for key, value in lines})
    return found


class RunningVm(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.stats_file = pathlib.Path(scratch.name) / "stats.json"
        self.recording = pathlib.Path(scratch.name) / "run.rec"
        self.saved = pathlib.Path(scratch.name) / "vm.saved"

    def start(self, *options, engine="interp"):
        session = ConsoleSession([STRATA, "run", "--kernel", GUEST, "--memory", "64M", "--engine",
                                  engine, "--stats", str(self.stats_file), *options])
        self.addCleanup(lambda: session.process.poll() is None and session.kill())
        return session

    def end(self, session):
        session.send("poweroff\n")
        self.assertEqual(session.finish(60), 0, session.text)
        return json.loads(self.stats_file.read_text())

    def check_threads(self, session, at_least):
        threads = threads_of(session.process.pid)
        self.assertGreaterEqual(len(threads), at_least)
        for thread in threads:
            for key, value in CONFINED.items():
                self.assertEqual(thread[key], value, f"{key} of {thread['Pid']}")
            self.assertNotIn("0", thread["Uid"].split())
            self.assertNotIn("0", thread["Groups"].split())
        return threads

    def test_every_thread_is_confined(self):
        for engine, cpus in (("interp", 1), ("interp", 4), ("auto", 1), ("auto", 4)):
            with self.subTest(engine=engine, cpus=cpus):
                session = self.start("--cpus", str(cpus), engine=engine)
                session.expect(PROMPT, 60)
                # The main thread, timers, console input, vCPUs.
                threads = self.check_threads(session, 3 + cpus)
                report = self.end(session)["sandbox"]
                self.assertEqual(report["system_calls"], "filtered")
                self.assertEqual(report["capabilities"], "none")
                self.assertEqual(report["uid"], int(threads[0]["Uid"].split()[0]))
                if report["bounding_set"] == "empty":
                    self.assertEqual(threads[0]["CapBnd"], "0" * 16)

    def test_exact_runs_too(self):
        session = self.start("--clock", "instructions", "--record", str(self.recording), "--save",
                             str(self.saved))
        session.expect(PROMPT, 60)
        self.check_threads(session, 4)  # and the one that waits for SIGUSR1
        self.end(session)
        done = subprocess.run([STRATA, "replay", str(self.recording)], capture_output=True,
                              text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_engine_kvm_too(self):
        session = self.start(engine="kvm")
        try:
            session.expect(PROMPT, 120)
        except Exception as error:  # noqa: BLE001: any reason will do
            if "--engine" in session.text:
                self.skipTest(session.text.strip())
            raise error
        self.check_threads(session, 5)  # and the pager
        self.end(session)

    def test_a_forbidden_call_ends_the_vm(self):
        """A debugger makes the VM's process open a file, as code that broke in would."""
        gdb = ["gdb", "--batch", "-nx", "-iex", "set auto-load off", "-p"]
        session = self.start()
        session.expect(PROMPT, 60)
        try:
            subprocess.run([*gdb, str(session.process.pid), "-ex", "handle SIGSYS pass nostop",
                            "-ex", "call (int) open(\"/etc/passwd\", 0)"], capture_output=True,
                           stdin=subprocess.DEVNULL, timeout=60)
        except FileNotFoundError:
            self.skipTest("no gdb on this host")
        try:
            session.process.wait(10)
        except subprocess.TimeoutExpired:
            self.skipTest("gdb cannot attach here")
        self.assertEqual(session.finish(60), 1)
        self.assertIn("the sandbox refused the system call open", session.text)

    def test_no_sandbox_says_what_is_lost(self):
        session = self.start("--no-sandbox")
        session.expect(PROMPT, 60)
        for thread in threads_of(session.process.pid):
            self.assertEqual(thread["Seccomp"], "0")
            self.assertEqual(thread["Uid"].split()[0], str(os.getuid()))
        self.assertEqual(self.end(session)["sandbox"], {"off": "--no-sandbox"})
        self.assertEqual(session.text.count("note: --no-sandbox: "), 1)


def built():
    """A sanitizer's build has no sandbox, and says so."""
    with tempfile.TemporaryDirectory() as scratch:
        stats = pathlib.Path(scratch) / "stats.json"
        subprocess.run([STRATA, "run", "--kernel", GUEST, "--append", "auto", "--memory", "64M",
                        "--engine", "interp", "--stats", str(stats)], stdin=subprocess.DEVNULL, capture_output=True,
                       timeout=300, check=True)
        return json.loads(stats.read_text())["sandbox"] != {"off": "this build has a sanitizer"}


if __name__ == "__main__":
    if not built():
        print("skipped: this build has a sanitizer")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], "-v"])

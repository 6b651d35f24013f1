"""Drives a guest through its serial console: used by the demo, the boot tests and the comparisons.

Works for any program that has the guest's console on its standard input and output.
"""

import os
import re
import selectors
import subprocess
import sys
import time


class ConsoleError(Exception):
    """The guest did not say what was expected; the message has the end of the console."""


class ConsoleSession:
    """One running program with a guest console. Times are seconds since the start."""

    def __init__(self, command, echo=False):
        self.start = time.monotonic()
        self.echo = echo
        self.text = ""
        self._position = 0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def elapsed(self):
        return time.monotonic() - self.start

    def _read(self, timeout):
        """Reads what is there; False at the end of the output."""
        if not self._selector.select(timeout):
            return True
        data = os.read(self.process.stdout.fileno(), 65536)
        if not data:
            return False
        decoded = data.decode("utf-8", "replace")
        self.text += decoded
        if self.echo:
            sys.stdout.write(decoded)
            sys.stdout.flush()
        return True

    def expect(self, wanted, timeout):
        """Waits until `wanted` appears after what was expected before; returns the time it did."""
        return self.expect_match(re.escape(wanted), timeout)[0]

    def expect_match(self, wanted, timeout):
        """The same for a regular expression; returns the time and the match."""
        pattern = re.compile(wanted)
        deadline = time.monotonic() + timeout
        while True:
            found = pattern.search(self.text, self._position)
            if found:
                self._position = found.end()
                return self.elapsed(), found
            if time.monotonic() > deadline:
                raise ConsoleError(f"no {wanted!r} within {timeout} s; console ends:\n{self.tail()}")
            if not self._read(0.2):
                self.process.wait()
                raise ConsoleError(
                    f"ended (exit code {self.process.returncode}) before {wanted!r}; "
                    f"console ends:\n{self.tail()}"
                )

    def send(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def finish(self, timeout):
        """Waits for the program's end; returns its exit code."""
        deadline = time.monotonic() + timeout
        while self._read(0.2):
            if time.monotonic() > deadline:
                self.kill()
                raise ConsoleError(f"still running after {timeout} s; console ends:\n{self.tail()}")
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def tail(self):
        return "\n".join(self.text.splitlines()[-15:])

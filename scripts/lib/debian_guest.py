"""The stock Debian guest that the demo, the boot tests and the measurements start: how it is
started, what its console says, and a workload that checks its own results."""

import hashlib
import json
import pathlib
import re
import subprocess

from console_session import ConsoleError, ConsoleSession

INIT_REACHED = "strata: init reached"
PROMPT = "~ # "
FLAVOURS = ("cloud-amd64", "686", "686-pae")
# The kernel's self-tests of its cryptography are most of a 32-bit boot and say nothing about us.
APPEND = {"cloud-amd64": "console=ttyS0",
          "686": "console=ttyS0 cryptomgr.notests", "686-pae": "console=ttyS0 cryptomgr.notests"}


def image_files(images, flavour="cloud-amd64"):
    """Kernel and initramfs as scripts/guest-images names them."""
    suffix = "" if flavour == "cloud-amd64" else f"-{flavour}"
    images = pathlib.Path(images)
    return images / f"vmlinuz{suffix}", images / f"initramfs{suffix}.gz"


def backends(strata, engine):
    """The --mmu names that this build has for an engine, from --version; none without the engine."""
    text = subprocess.run([strata, "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"^{engine}\s+(\w+)", text, re.MULTILINE)


def run_command(strata, images, engine, mmu, *more, flavour="cloud-amd64", cpus=1):
    """The command line; `more` is appended to it."""
    kernel, initrd = image_files(images, flavour)
    return [strata, "run", "--kernel", kernel, "--initrd", initrd, "--append", APPEND[flavour],
            "--memory", "256M", "--engine", engine, "--mmu", mmu,
            *(["--cpus", str(cpus)] if cpus > 1 else []), *more]


class DebianGuest:
    """One booted guest. Every method raises ConsoleError when the guest does not do its part."""

    def __init__(self, command, echo=False, boot_timeout=600):
        self.session = ConsoleSession(command, echo=echo)
        self.booted = self.session.expect(INIT_REACHED, boot_timeout)  # seconds since the start
        self.session.expect(PROMPT, 60)

    def type(self, line, *wanted, timeout=120):
        """Types a line and waits for each of `wanted` in turn, then for the next prompt."""
        self.session.send(line + "\n")
        for text in wanted:
            self.session.expect(text, timeout)
        self.session.expect(PROMPT, timeout)

    def check_parallel_work(self, jobs, megabytes=1):
        """`jobs` processes hash different data at once; every hash must be the right one."""
        size = megabytes << 20
        pipelines = " ".join(
            f"(head -c {size} /dev/zero; echo strata-{job}) | sha256sum >/tmp/h{job} &"
            for job in range(jobs))
        self.session.send(f"{pipelines} wait; cat /tmp/h?\n")
        for job in range(jobs):
            data = bytes(size) + f"strata-{job}\n".encode()
            self.session.expect(hashlib.sha256(data).hexdigest(), 300)
        self.session.expect(PROMPT, 60)

    def power_off(self):
        self.session.send("poweroff -f\n")
        code = self.session.finish(120)
        if code != 0:
            raise ConsoleError(
                f"exit code {code} instead of 0 after power-off\n{self.session.tail()}")


def read_stats(path):
    """The JSON that --stats wrote."""
    return json.loads(pathlib.Path(path).read_text())

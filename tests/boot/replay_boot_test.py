#!/usr/bin/env python3
"""A stock Debian kernel, exactly: recorded under the first backend, replayed under the others; saved
in the middle and gone on with elsewhere; in lock-step with a second VM. Every way ends with the
same instructions and memory.

Usage: replay_boot_test.py STRATA IMAGES MMU...
IMAGES is what scripts/guest-images makes. Exit code 77: the kernel is not there.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from debian_guest import image_files  # noqa: E402

SKIP = 77
INTERP = ["--engine", "interp"]
# The first process powers off: no input is needed.
APPEND = "console=ttyS0 rdinit=/bin/poweroff -- -f"


def strata(program, *options):
    done = subprocess.run([program, *map(str, options)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=800)
    assert done.returncode == 0, f"{options}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr}"
    return done


def finish(program, stats, *options):
    """Output, instructions and checksum of a run."""
    output = strata(program, "run", "--stats", stats, *options).stdout
    counted = json.loads(stats.read_text())
    return output, counted["vcpu"]["instructions"], counted["memory_checksum"]


def main():
    program, images, mmus = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    kernel, initrd = image_files(images, "cloud-amd64")[:2]
    if not kernel.exists():
        print(f"skipped: no Debian kernel in {images}")
        return SKIP
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        stats, recording, saved = (scratch / name for name in ("stats", "boot.rec", "boot.vm"))
        guest = ["--kernel", kernel, "--initrd", initrd, "--append", APPEND, "--memory", "256M",
                 *INTERP]
        # Host time: its interrupts come where they happen to come.
        _, instructions, checksum = finish(program, stats, *guest, "--mmu", mmus[0], "--record",
                                           recording)
        for mmu in mmus[1:]:
            said = strata(program, "replay", recording, "--mmu", mmu).stderr
            assert checksum in said and f"{instructions} instructions" in said, said
        print(f"recorded under {mmus[0]}: {instructions:,} instructions, "
              f"{recording.stat().st_size / 2**20:.1f} MiB; replayed under {', '.join(mmus[1:])}")

        exact = [*guest, "--clock", "instructions"]
        output, instructions, checksum = finish(program, stats, *exact, "--mmu", mmus[-1])
        assert "Linux version" in output, output[-2000:]
        at = random.Random(1).randrange(instructions // 10, instructions)
        begun = strata(program, "run", *exact, "--mmu", mmus[0], "--save", saved, "--save-at", at)
        rest = finish(program, stats, "--load", saved, *INTERP, "--mmu", mmus[len(mmus) // 2])
        assert begun.stdout + rest[0] == output
        assert rest[1:] == (instructions, checksum), (at, rest[1:], instructions, checksum)
        print(f"saved at instruction {at:,} of {instructions:,}, "
              f"{saved.stat().st_size / 2**20:.1f} MiB; loaded elsewhere: the same end")

        said = strata(program, "run", *exact, "--mmu", mmus[-1], "--check", "interp," + mmus[0],
                      "--check-every", 2000).stderr
        assert "all equal" in said, said
        print(said.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Boots a stock Debian kernel to a shell under one backend, types a command, powers off.

Usage: boot_test.py STRATA IMAGES MMU
IMAGES holds vmlinuz and initramfs.gz (see scripts/guest-images). Exit code 77: they are not there.
"""

import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleError, ConsoleSession  # noqa: E402

SKIP = 77
PROMPT = "~ # "
ZEROES_MD5 = "c9fc2d3dd83ab67a129ac10b09c9ebbb"


def boot(strata, images, mmu, stats):
    session = ConsoleSession(
        [strata, "run", "--kernel", images / "vmlinuz", "--initrd", images / "initramfs.gz",
         "--append", "console=ttyS0", "--memory", "256M", "--mmu", mmu, "--stats", stats,
         "--timeout", "600"])
    session.expect("strata: init reached", 500)
    session.expect(PROMPT, 60)
    # The shell computes, so the answer is not an echo of what was typed.
    session.send("echo answer-$((6*7)); head -c 3000000 /dev/zero | md5sum; free -m | grep Mem\n")
    session.expect("answer-42", 60)
    # md5 of 3,000,000 zero bytes: integer code, pipes, copies and page faults all took part.
    session.expect(ZEROES_MD5, 60)
    session.expect("Mem:", 60)
    session.expect(PROMPT, 60)
    session.send("poweroff -f\n")
    code = session.finish(120)
    if code != 0:
        raise ConsoleError(f"exit code {code} instead of 0 after power-off\n{session.tail()}")
    return session


def check_stats(stats, mmu):
    counted = json.loads(pathlib.Path(stats).read_text())
    assert counted["mmu"] == mmu and counted["outcome"] == "power-off", counted
    assert counted["vcpu"]["instructions"] > 100_000_000, counted["vcpu"]
    tables = counted["tables"]["shadow_bytes" if mmu == "shadow" else "nested_bytes"]
    assert tables > 4096, tables
    resident = counted["overhead"]["vmm_resident_bytes"]
    print(f"{mmu}: {counted['seconds']['total']:.1f} s, {counted['vcpu']['instructions']:,} "
          f"instructions, VMM resident {resident / 2**20:.1f} MiB")
    assert resident <= 32 << 20, f"VMM resident {resident} bytes; at most 32 MiB are wanted"


def main():
    strata, images, mmu = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    if not (images / "vmlinuz").exists():
        print(f"skipped: no Debian kernel in {images}")
        return SKIP
    with tempfile.TemporaryDirectory() as scratch:
        stats = os.path.join(scratch, "stats.json")
        try:
            boot(strata, images, mmu, stats)
        except ConsoleError as error:
            print(f"{mmu}: {error}")
            return 1
        check_stats(stats, mmu)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Boots a stock Debian kernel to a shell, has it compute on every vCPU, powers off.

Usage: boot_test.py STRATA IMAGES ENGINE MMU [FLAVOUR [CPUS]]
IMAGES is what scripts/guest-images makes; FLAVOUR one of its kernels (default cloud-amd64). Exit
code 77: the kernel is not there.
"""

import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleError  # noqa: E402
from debian_guest import DebianGuest, image_files, read_stats, run_command  # noqa: E402

SKIP = 77
# md5 of 3,000,000 zero bytes: integer code, pipes, copies and page faults all take part.
ZEROES_MD5 = "c9fc2d3dd83ab67a129ac10b09c9ebbb"


def boot(strata, images, engine, mmu, flavour, cpus, stats):
    guest = DebianGuest(run_command(strata, images, engine, mmu, "--stats", stats,
                                    "--timeout", "600", flavour=flavour, cpus=cpus))
    # The shell computes, so the answer is not an echo of what was typed.
    guest.type("echo answer-$((6*7)); head -c 3000000 /dev/zero | md5sum; free -m | grep Mem",
               "answer-42", ZEROES_MD5, "Mem:")
    guest.type("echo cpus-$(nproc)-online", f"cpus-{cpus}-online")
    guest.check_parallel_work(jobs=2 * cpus)
    guest.power_off()


def check_stats(stats, engine, mmu, cpus, name):
    counted = read_stats(stats)
    assert counted["engine"] == engine and counted["mmu"] == mmu, counted
    assert counted["outcome"] == "power-off", counted
    assert counted["vcpu"]["instructions"] > 100_000_000, counted["vcpu"]
    assert len(counted["vcpus"]) == cpus, counted["vcpus"]
    for number, vcpu in enumerate(counted["vcpus"]):
        assert vcpu["instructions"] > 1_000_000, f"vCPU {number} did nothing: {vcpu}"
        assert vcpu["startups"] == (0 if number == 0 else 1), vcpu
    assert sum(v["instructions"] for v in counted["vcpus"]) == counted["vcpu"]["instructions"]
    tables = counted["tables"]["shadow_bytes" if mmu == "shadow" else "nested_bytes"]
    assert tables > 4096, tables
    resident = counted["overhead"]["vmm_resident_bytes"]
    print(f"{name}: {counted['seconds']['total']:.1f} s, {counted['vcpu']['instructions']:,} "
          f"instructions, VMM resident {resident / 2**20:.1f} MiB")
    return resident


def main():
    strata, images, engine, mmu = sys.argv[1], pathlib.Path(sys.argv[2]), *sys.argv[3:5]
    flavour = sys.argv[5] if len(sys.argv) > 5 else "cloud-amd64"
    cpus = int(sys.argv[6]) if len(sys.argv) > 6 else 1
    if not image_files(images, flavour)[0].exists():
        print(f"skipped: no Debian kernel {flavour} in {images}")
        return SKIP
    name = f"{flavour} {engine} {mmu} {cpus} vCPU"
    with tempfile.TemporaryDirectory() as scratch:
        stats = os.path.join(scratch, "stats.json")
        try:
            boot(strata, images, engine, mmu, flavour, cpus, stats)
        except ConsoleError as error:
            print(f"{name}: {error}")
            return 1
        resident = check_stats(stats, engine, mmu, cpus, name)
        # A translator's code cache, and what it knows of the blocks in it, are a vCPU's own.
        first, other = (48, 28) if engine == "bt" else (32, 12)
        allowed = (first + other * (cpus - 1)) << 20
        assert resident <= allowed, f"VMM resident {resident} bytes; at most {allowed} are wanted"
    return 0


if __name__ == "__main__":
    sys.exit(main())

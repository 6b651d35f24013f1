#!/usr/bin/env python3
"""Boots the guest benchmark suite and checks that it computes what it does natively.

Usage: bench_guest_test.py STRATA BENCH_GUEST IMAGES MMU
IMAGES is what scripts/guest-images makes. Exit code 77: the kernel is not there.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from debian_guest import image_files  # noqa: E402
from guest_suite import (BOOT, list_tests, make_initramfs, native_column, run_suite,  # noqa: E402
                         strata_column)

SKIP = 77
# Integer and x87 code, signals, processes: a little of each; the comparison runs the rest.
TESTS = ["crc", "x87", "float_avx2", "sigsegv", "exec"]
SCALE = 0.01


def check(strata, binary, kernel, mmu, scratch):
    initrd = f"{scratch}/initramfs.gz"
    make_initramfs(binary, initrd)
    assert set(TESTS) <= set(list_tests(binary)), list_tests(binary)
    native = run_suite(native_column(binary), TESTS, SCALE, 60)
    guest = run_suite(strata_column(strata, kernel, initrd, "interp", mmu), TESTS, SCALE, 200)
    assert not native.failures, native.failures
    assert not guest.failures, guest.failures
    assert list(native.checksums) == TESTS, native.checksums
    assert guest.checksums == native.checksums, f"{guest.checksums}, natively {native.checksums}"
    assert guest.stats and guest.stats["outcome"] == "power-off", guest.stats
    print(f"{mmu}: init after {guest.seconds[BOOT]:.1f} s, {len(TESTS)} checksums as natively")


def main():
    strata, binary, images, mmu = sys.argv[1:5]
    kernel = image_files(images)[0]
    if not kernel.exists():
        print(f"skipped: no Debian kernel in {images}")
        return SKIP
    with tempfile.TemporaryDirectory() as scratch:
        check(strata, binary, kernel, mmu, scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())

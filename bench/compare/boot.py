#!/usr/bin/env python3
"""Boots the same kernel and initramfs under Strata and under QEMU TCG in one run; prints ratios.

Usage: boot.py STRATA IMAGES [--runs N] [--json FILE]
Needs qemu-system-x86_64 (Debian package qemu-system-x86; for comparison only). The time is from
program start to the line that init prints. Runs alternate, so that both meet the same host.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleSession  # noqa: E402
from debian_guest import APPEND, INIT_REACHED, backends, image_files, run_command  # noqa: E402


def time_to_init(command):
    session = ConsoleSession(command)
    try:
        return session.expect(INIT_REACHED, 600)
    finally:
        session.kill()


def commands(strata, images):
    kernel, initrd = image_files(images)
    result = {
        "qemu-tcg": ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nographic",
                     "-no-reboot", "-kernel", kernel, "-initrd", initrd,
                     "-append", APPEND["cloud-amd64"]]}
    for mmu in backends(strata, "interp"):
        result[f"strata interp/{mmu}"] = run_command(strata, images, "interp", mmu)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("strata")
    parser.add_argument("images")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        print("skipped: qemu-system-x86_64 is not installed")
        return 77
    seconds = {}
    for _ in range(options.runs):
        for name, command in commands(options.strata, options.images).items():
            seconds.setdefault(name, []).append(time_to_init(command))
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    base = statistics.median(seconds["qemu-tcg"])
    figures = {name: {"seconds": statistics.median(s), "ratio_to_tcg": statistics.median(s) / base}
               for name, s in seconds.items()}
    print(f"\n{'':<22}{'median s':>9}{'x TCG':>8}")
    for name, f in figures.items():
        print(f"{name:<22}{f['seconds']:>9.2f}{f['ratio_to_tcg']:>8.2f}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

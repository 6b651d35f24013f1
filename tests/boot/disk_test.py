#!/usr/bin/env python3
"""Boots Debian from a disk, works on a second one, powers off; the changes are in the overlays.

Usage: disk_test.py STRATA MACHINE ENGINE CPUS
MACHINE is what scripts/guest-image makes. Exit code 77: it is not there.
"""

import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleError, ConsoleSession  # noqa: E402

SKIP = 77
MINUTES = 60
SPARE_MIB = 64
# Of the same bytes that the guest makes: 8 MiB of "strata\n" over and over.
PATTERN = (b"strata\n" * (8 * 2**20 // 7 + 1))[: 8 * 2**20]


def command(strata, machine, engine, cpus, scratch):
    return [strata, "run", "--engine", engine, "--cpus", str(cpus), "--memory", "512M",
            "--kernel", str(machine / "vmlinuz"), "--initrd", str(machine / "initrd.img"),
            "--append", "console=ttyS0 root=/dev/vda rw quiet",
            "--disk", f"{machine / 'disk.raw'},overlay={scratch / 'root.overlay'}",
            "--code-cache", "32M",
            "--disk", str(scratch / "spare.raw"),
            "--disk", f"{machine / 'packages.raw'},ro",
            "--timeout", "900"]


def session(guest):
    guest.expect("login: ", 10 * MINUTES)
    guest.send("root\n")
    guest.expect("assword: ", 2 * MINUTES)
    guest.send("strata\n")
    guest.expect("# ", 2 * MINUTES)

    def run(line, *answers):
        guest.send(f"{line}; echo done-$?-$((40+2))\n")
        for answer in answers:
            guest.expect(answer, 5 * MINUTES)
        guest.expect("done-0-42", 5 * MINUTES)

    # Its interrupts come as messages, one for the queue and one for the configuration.
    run("echo messages-$(grep -c 'PCI-MSI.*virtio0' /proc/interrupts)", "messages-2")
    run("echo disks-$(cat /sys/block/vdc/ro /sys/block/vdb/size)", f"disks-1 {SPARE_MIB * 2048}")
    run("yes strata | head -c 8M > /tmp/p; dd if=/tmp/p of=/dev/vdb bs=64k oflag=direct seek=16")
    # Beside each other, from page cache and without it; then what the disk says.
    run("for i in 1 2 3 4; do dd if=/dev/vdb of=/dev/null bs=4k iflag=direct count=512 & done; wait")
    run("dd if=/dev/vdb bs=1M iflag=direct skip=1 count=8 | cmp - /tmp/p && echo sa''me", "same")
    run("blkdiscard -o 4194304 -l 1048576 /dev/vdb; blkdiscard -z -o 5242880 -l 4096 /dev/vdb")
    run("echo kept > /root/kept; sync")
    guest.send("poweroff\n")
    code = guest.finish(5 * MINUTES)
    assert code == 0, f"the VM ended with {code}"


def check_files(scratch):
    spare = (scratch / "spare.raw").read_bytes()
    assert spare[2**20:4 * 2**20] == PATTERN[: 3 * 2**20], "what was written is not in the image"
    assert not any(spare[5 * 2**20 : 5 * 2**20 + 4096]), "the zeroes that were written are not"
    assert spare[5 * 2**20 + 4096 : 9 * 2**20] == PATTERN[4 * 2**20 + 4096 :]


def main():
    strata, machine, engine = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    cpus = int(sys.argv[4])
    if not (machine / "disk.raw").exists():
        print(f"skipped: no Debian machine in {machine}")
        return SKIP
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        subprocess.run(["truncate", "-s", f"{SPARE_MIB}M", scratch / "spare.raw"], check=True)
        guest = ConsoleSession(command(strata, machine, engine, cpus, scratch))
        try:
            session(guest)
            check_files(scratch)
        except (ConsoleError, AssertionError) as error:
            print(f"{engine} {cpus} vCPU: {error}")
            return 1
        finally:
            guest.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())

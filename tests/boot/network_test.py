#!/usr/bin/env python3
"""Debian on a user-mode network: a lease, files over HTTP both ways, and a connection into it.

Usage: network_test.py STRATA DIR      (DIR: what scripts/guest-image makes)
Exit code 77: there is no image. Servers listen on 127.0.0.1 only.
"""

import hashlib
import http.server
import os
import pathlib
import socket
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib"))
from console_session import ConsoleError, ConsoleSession  # noqa: E402

SKIP = 77
LARGE = 50 << 20


class Files(http.server.BaseHTTPRequestHandler):
    """Gives one file away, and takes others to say what their checksums are."""

    content = os.urandom(LARGE)

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def do_PUT(self):
        checksum = hashlib.md5()
        left = int(self.headers["Content-Length"])
        while left > 0:
            part = self.rfile.read(min(left, 1 << 16))
            if not part:
                return
            checksum.update(part)
            left -= len(part)
        answer = f"sum {checksum.hexdigest()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def check(session, port, forwarded):
    session.expect("login:", 900)  # hosts that do more than this
    session.send("root\n")
    session.expect("Password:", 60)
    session.send("strata\n")
    session.expect("# ", 60)

    def run(command, *answers):
        session.send(command + "\n")
        for answer in answers:
            session.expect(answer, 300)

    run("for i in $(seq 60); do ip -4 addr | grep -q 10.0.2.15 && break; sleep 1; done; "
        "ip -4 addr | grep -o 'inet 10[.0-9]*'", "inet 10.0.2.15")
    run(f"curl -s -o /root/large http://10.0.2.2:{port}/large && md5sum < /root/large",
        hashlib.md5(Files.content).hexdigest())
    run(f"curl -s -T /root/large http://10.0.2.2:{port}/up; rm /root/large",
        "sum " + hashlib.md5(Files.content).hexdigest())
    run("systemctl is-active --wait ssh.service; echo ssh-$((6*7))", "ssh-42")
    with socket.create_connection(("127.0.0.1", forwarded), timeout=60) as connection:
        connection.settimeout(60)
        assert connection.recv(8).startswith(b"SSH-2.0"), "no SSH server behind the port"
    session.send("poweroff\n")
    assert session.finish(120) == 0, session.text[-2000:]


def main():
    strata, images = sys.argv[1], pathlib.Path(sys.argv[2])
    if not (images / "disk.raw").exists():
        print(f"skipped: no image in {images}")
        return SKIP
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    forwarded = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        session = ConsoleSession([
            strata, "run", "--kernel", str(images / "vmlinuz"), "--initrd",
            str(images / "initrd.img"), "--append", "console=ttyS0 root=/dev/vda",
            "--disk", f"{images / 'disk.raw'},overlay={scratch}/changes", "--memory", "512M",
            "--net", f"user,hostfwd=tcp::{forwarded}-:22", "--timeout", "1200"])
        try:
            check(session, server.server_address[1], forwarded)
        except (ConsoleError, AssertionError, OSError) as error:
            print(f"network: {error}")
            return 1
        finally:
            if session.process.poll() is None:
                session.kill()
            server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

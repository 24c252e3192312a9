"""``make demo`` as a person runs it, to its end and interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "tests.support.demo"]


def leftovers() -> set[str]:
    """What a demo makes: rules, folders, processes."""
    found = {str(path) for path in Path("/etc/request-key.d").glob("lgss-test-*")}
    found |= {str(path) for path in Path("/tmp").glob("lgss-s*")} | {
        str(path) for path in Path("/tmp").glob("lgss-realm-*")
    }
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if any(word in line for word in (b"krb5kdc", b"lgss_keyring.testing", b"lgss_keyring.py")):
                found.add(entry.name)
    return found


def test_to_its_end() -> None:
    before = leftovers()
    started = time.monotonic()
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started < 30
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "demo: 2 established, 0 failed"
    for words in (
        "request_key() is called",
        "established as lustre_root/localhost@LGSS.TEST",
        "established as alice@LGSS.TEST",
        "verifies with the acceptor's own context",
        "without an upcall",
        "working as uid 61234",
        " user      lgss:",
        "aes256-cts-hmac-sha1-96",
    ):
        assert words in done.stdout, words
    assert leftovers() <= before


def test_interrupted() -> None:
    for number, delay in ((signal.SIGINT, 0.6), (signal.SIGINT, 1.5), (signal.SIGTERM, 1.2)):
        before = leftovers()
        demo = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        if delay > 1:
            demo.stdout.readline()  # it is set up
        time.sleep(delay - 0.5)
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=20)
        assert output.splitlines()[-1].startswith("demo: ")
        deadline = time.monotonic() + 5
        while not leftovers() <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert leftovers() <= before

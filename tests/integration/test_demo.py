"""``make demo`` as a person runs it, to its end and interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.site import USER_UID
from tests.support.stage import CHECKOUT

COMMAND = [sys.executable, "-m", "tests.support.demo"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a demo makes its files: by this name those are known that it leaves behind."""
    made = runs.folder("demo")
    monkeypatch.setenv("LGSS_TESTS_FOLDER", str(made / "runs"))
    yield made
    runs.remove(made)


def leftovers(folder: Path) -> set[str]:
    """What such a demo has left: folders, rules, processes. Not what others on this machine make."""
    found = {str(path) for path in folder.rglob("*")}
    for path in Path("/etc/request-key.d").glob("lgss-test-*"):
        with contextlib.suppress(FileNotFoundError):
            if str(folder) in path.read_text():
                found.add(str(path))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(str(folder).encode() in (entry / n).read_bytes() for n in ("cmdline", "environ")):
                    found.add(entry.name)
    return found


def test_to_its_end(folder: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started < 30
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "demo: 2 established, 0 failed"
    for words in (
        "request_key() is called",
        "initiator lustre_root/localhost@LGSS.TEST",
        "initiator alice@LGSS.TEST",
        "verifies with the acceptor's own context",
        "without an upcall",
        f"working as uid {USER_UID}",
        " user      lgss:",
        "aes256-cts-hmac-sha1-96",
    ):
        assert words in done.stdout, words
    assert not leftovers(folder)


def test_time_line_is_in_the_order_of_what_happened() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    for start in (number for number, line in enumerate(lines) if line.endswith("request_key() is called")):
        steps = lines[start : lines.index("", start)]
        times = [float(step.split()[0]) for step in steps]
        assert times == sorted(times), steps
        (instantiated,) = (number for number, step in enumerate(steps) if "the key is instantiated" in step)
        # The worker of the machine goes on as well, so its next step may come between.
        assert [step for step in steps[instantiated + 1 :] if "the caller goes on" in step], steps
        assert "handed to the kernel" in steps[-1], steps


def test_kept_until_enter(folder: Path) -> None:
    demo = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "KEEP": "1"}
    )
    assert demo.stdin is not None and demo.stdout is not None
    output = ""
    while "docs/by-hand.md" not in output:
        line = demo.stdout.readline()
        assert line, output
        output += line
    assert demo.poll() is None
    # What it says can be typed.
    told = re.search(r"keyctl request2 user \S+:root \S+ @s", output)
    assert told, output
    done = subprocess.run(
        ["keyctl", "session", "-", "sh", "-c", told[0]], capture_output=True, text=True, timeout=20
    )
    assert done.stdout.strip().isdecimal(), done.stdout + done.stderr
    rest, _ = demo.communicate("\n", timeout=20)
    assert rest.splitlines()[-1] == "demo: 2 established, 0 failed"
    assert not leftovers(folder)


def test_who_is_not_root_is_told_before_anything_is_built(tmp_path: Path) -> None:
    other = tmp_path / "id"
    other.write_text("#!/bin/sh\necho 1000\n")
    other.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    # An empty folder as virtual environment: what is not there would have to be built.
    done = subprocess.run(
        ["make", "-C", str(CHECKOUT), "demo", f"VENV={tmp_path}/none"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode != 0
    assert "make demo needs root" in done.stderr
    assert "building" not in done.stdout and not (tmp_path / "none").exists()


def test_interrupted(folder: Path) -> None:
    # While it sets up, and at two moments of its work.
    for number, line, delay in (
        (signal.SIGINT, False, 0.0),
        (signal.SIGINT, True, 1.0),
        (signal.SIGTERM, True, 0.7),
    ):
        demo = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        if line:
            demo.stdout.readline()
        else:
            # Python itself has started then: before that there is nothing to take away.
            deadline = time.monotonic() + 30
            while not list(folder.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(delay)
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=20)
        assert output.splitlines()[-1].startswith("demo: ")
        deadline = time.monotonic() + 5
        while leftovers(folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not leftovers(folder)

"""Handlers for the test module's keys, written by the tests themselves."""

from __future__ import annotations

import errno
import itertools
import os
import pwd
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testmod import (
    INIT_CHANNEL,
    PARAMETERS,
    Channel,
)

RULES = Path("/etc/request-key.d")
FOLDER = Path("/run/lgss-testmod")
CALLOUT = "2:krb5:0:0:r:p:1:0x20000c0a84d01:lustre-MDT0000-mdc:0x20000c0a84d02:1:uuid"
NOBODY = pwd.getpwnam("nobody").pw_uid

GOOD = struct.pack("=II8sI12s", 2048, 8, b"\x01handle\x02", 12, b"context data")
FAILURE = struct.pack("=IiI", 0, -errno.ENETUNREACH, 0xD0000)

# Written before each test's own part: what an upcall is made of, and words for it.
PRELUDE = r"""#!/bin/bash
exec >>/run/lgss-testmod/log 2>&1 </dev/null
cd /run/lgss-testmod
key=$2 description=$4 uid=$6 thread=$8 process=$9 session=${10}
echo "upcall $*"
instantiate() { keyctl instantiate $key "" 0; }
update() { keyctl pupdate $key <"$1"; }
keep_updating() {
    local i
    for i in {1..200}; do
        update "$1" && { echo "updated after $i"; return; }
        sleep 0.05
    done
}
"""

numbers = itertools.count(0x1000)


@pytest.fixture
def description() -> str:
    """Return a key description that no other test uses."""
    return f"0@{next(numbers):x}"


class Handler:
    """A shell script as the handler of all `lgssc` keys."""

    def __init__(self) -> None:
        self.script = FOLDER / "handler"
        (FOLDER / "good").write_bytes(GOOD)
        (FOLDER / "failure").write_bytes(FAILURE)

    def __call__(self, body: str) -> None:
        """Set what the script does after the prelude."""
        self.script.write_text(PRELUDE + body + "\n")
        self.script.chmod(0o755)

    def log(self, *wanted: str, limit: float = 30) -> str:
        """Return what the handler wrote, once it has written all that is wanted."""
        end = time.monotonic() + limit
        while True:
            text = (FOLDER / "log").read_text() if (FOLDER / "log").exists() else ""
            if all(word in text for word in wanted):
                return text
            assert time.monotonic() < end, f"no {wanted} in:\n{text}"
            time.sleep(0.05)

    def upcalls(self) -> int:
        """Return how many upcalls there were."""
        return sum(line.startswith("upcall ") for line in self.log().splitlines())


@pytest.fixture(scope="module")
def rule() -> Iterator[None]:
    """Install the rule, with a product's rule for the same type out of the way."""
    others = [path for path in RULES.glob("*.conf") if "lgssc" in path.read_text()]
    for path in others:
        path.rename(path.with_suffix(".set-aside"))
    ours = RULES / "lgss-testmod.conf"
    ours.write_text(f"create lgssc * * {FOLDER}/handler %o %k %t %d %c %u %g %T %P %S\n")
    try:
        yield
    finally:
        ours.unlink()
        for path in others:
            path.with_suffix(".set-aside").rename(path)


@pytest.fixture
def handler(rule: None) -> Iterator[Handler]:
    """Return the handler, with an empty log."""
    subprocess.run(["rm", "-rf", FOLDER], check=True)
    FOLDER.mkdir()
    yield Handler()


@pytest.fixture
def parameter() -> Iterator[Callable[[str, int], None]]:
    """Set parameters of the module for one test."""
    before: dict[str, str] = {}

    def change(name: str, value: int) -> None:
        before.setdefault(name, (PARAMETERS / name).read_text())
        (PARAMETERS / name).write_text(f"{value}\n")

    yield change
    for name, text in before.items():
        (PARAMETERS / name).write_text(text)


def wait_gone(pid: int, limit: float) -> None:
    """Wait until a child has ended."""
    end = time.monotonic() + limit
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end, f"process {pid} does not end"
        time.sleep(0.02)


def fork(work: Callable[[], object]) -> int:
    """Do something in a child that is not waited for."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def wait_pending(description: str) -> None:
    """Wait until a key of root's is bound to a context that waits for its update."""
    end = time.monotonic() + 30
    while f"{description}: pending" not in Path("/proc/keys").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def word(value: int) -> bytes:
    """Return a 32-bit field."""
    return struct.pack("=I", value & 0xFFFFFFFF)


def errno_of(channel: Channel, data: bytes | None = None) -> int:
    """Return with which errno a write fails."""
    device = os.open(INIT_CHANNEL, os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.write(device, bytes(channel.record) if data is None else data)
    finally:
        os.close(device)
    assert caught.value.errno is not None
    return caught.value.errno

"""The test module's trigger device, the lock of a mount, and its end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from handlers import CALLOUT, FOLDER, NOBODY, Handler, errno_of, fork, numbers, wait_gone, wait_pending
from testmod import (
    DEBUG_LEVEL,
    INIT_CHANNEL,
    Acceptor,
    Channel,
    pull,
    request_line,
    trigger,
)

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded")]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"description=0@1",
        b"callout=x",
        b"description= callout=x",
        b"root=2 description=0@1 callout=x",
        b"root description=0@1 callout=x",
        b"speed=1 description=0@1 callout=x",
        b"timeout_ms=-1 description=0@1 callout=x",
        b"timeout_ms=300001 description=0@1 callout=x",
        b"description=0@1 callout=x\0y",
        b"description=0@1 callout=" + bytes(5000),
    ],
)
def test_bad_requests_are_refused(line: bytes) -> None:
    with pytest.raises(OSError) as caught:
        pull(line)
    assert caught.value.errno in {errno.EINVAL, errno.ERANGE}


def references() -> int:
    """Return how many references to the module there are."""
    return int(Path("/sys/module/lgss_testmod/refcnt").read_text())


def test_killed_while_the_handler_lingers(handler: Handler, description: str) -> None:
    """A handler that does not end keeps request_key() waiting, but no requestor that is killed."""
    handler("echo $$ >pid\ninstantiate\nexec sleep 300")
    line = request_line(description, CALLOUT, root=True, hold=True)
    pid = fork(lambda: pull(line))
    handler.log("upcall")
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid, 2)
    # The worker is still in request_key(), uninterruptibly, and with the lock.
    assert references() == 1
    os.kill(int((FOLDER / "pid").read_text()), signal.SIGKILL)
    end = time.monotonic() + 10
    while references():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_while_it_waits_for_the_update(handler: Handler, description: str) -> None:
    handler("instantiate\n(while ! [ -e killed ]; do sleep 0.05; done; sleep 0.5; update good; echo done) &")
    line = request_line(description, CALLOUT, root=False, timeout_ms=300000)
    pid = fork(lambda: pull(line))
    wait_pending(description)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid, 2)
    (FOLDER / "killed").touch()
    assert "keyctl_update: Required key not available" in handler.log("done")
    assert references() == 0


def test_writes_wait_for_a_mount(handler: Handler, description: str) -> None:
    """The write gets through when request_key() has returned, and not before."""
    handler("instantiate\n(keep_updating good) &\nsleep 2")
    with Acceptor(lambda request: b"reply"), ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, hold=True)
        handler.log("upcall")
        start = time.monotonic()
        assert Channel(b"token").write()[0] == 0
        waited = time.monotonic() - start
        report = future.result()
    assert report.error == 0
    # The handler had started already, so not the whole of its two seconds.
    assert 1 <= waited < 10


def test_waiting_for_a_mount_is_bounded(
    handler: Handler, description: str, parameter: Callable[[str, int], None]
) -> None:
    """What deadlocks a real client for good: a front that waits for its own write."""
    parameter("lock_limit_ms", 500)
    handler("instantiate\n(keep_updating good) &\nwhile ! [ -e written ]; do sleep 0.05; done")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, hold=True)
        handler.log("upcall")
        assert errno_of(Channel(b"token")) == errno.EDEADLK
        # Another mount has to wait as well, and is told so.
        other = trigger(f"0@{next(numbers):x}", CALLOUT, hold=True)
        assert (other.error, other.stage) == (-errno.EDEADLK, "lock")
        (FOLDER / "written").touch()
        assert future.result().error == 0


def test_killed_while_it_waits_for_a_mount(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &\nwhile ! [ -e killed ]; do sleep 0.05; done")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, hold=True)
        handler.log("upcall")
        pid = fork(lambda: Channel(b"token").write())
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid, 2)
        (FOLDER / "killed").touch()
        assert future.result().error == 0


def test_debug_level() -> None:
    assert DEBUG_LEVEL.read_text() == "1\n"
    try:
        for level in range(5):
            DEBUG_LEVEL.write_text(f"{level}\n")
            assert DEBUG_LEVEL.read_text() == f"{level}\n"
        for text in ("5", "-1", "x", ""):
            with DEBUG_LEVEL.open("w") as file, pytest.raises(OSError):
                os.write(file.fileno(), text.encode() or b"\n")
    finally:
        DEBUG_LEVEL.write_text("1\n")


def test_unloading_takes_the_keys_along(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    assert trigger(description, CALLOUT, uid=NOBODY).error == 0
    subprocess.run(["rmmod", "lgss_testmod"], check=True, timeout=60)
    assert not INIT_CHANNEL.exists()
    subprocess.run(["modprobe", "lgss_testmod"], check=True)
    report = trigger(description, CALLOUT, uid=NOBODY)
    assert (report.error, report.found) == (0, False)

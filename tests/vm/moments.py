"""Requests that the test module makes at a moment of its own, and their reports.

What the module does is written in lgss_testmod/README.md, "when".
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from testmod import TRIGGER, Report, become, parse_report, request_line

REPORTS = Path("/dev/lgss_reports")


def report_of(description: str, limit: float = 120) -> Report:
    """Wait for the report of a request that was made at close or in init_channel.

    Older reports, of other descriptions, are dropped. Raises TimeoutError after
    ``limit`` seconds.
    """
    end = time.monotonic() + limit
    device = os.open(REPORTS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while (left := end - time.monotonic()) > 0:
            if select.select([device], [], [], left)[0]:
                report = parse_report(os.read(device, 65536).decode())
                if report.description == description:
                    return report
    finally:
        os.close(device)
    raise TimeoutError(f"no report of {description} within {limit:g} s")


@contextlib.contextmanager
def at_the_next_write(description: str, callout: str, timeout_ms: int = 30000) -> Iterator[None]:
    """Have the next process that writes to init_channel request this key of root's meanwhile."""
    device = os.open(TRIGGER, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(device, request_line(description, callout, root=True, timeout_ms=timeout_ms, when="channel"))
        yield
    finally:
        os.close(device)


@contextlib.contextmanager
def process_with_request_at_close(
    description: str,
    callout: Callable[[int], str],
    uid: int,
    *,
    root: bool = False,
    timeout_ms: int = 90000,
) -> Iterator[int]:
    """Yield the id of a user's process that keeps open a file of the trigger device.

    When its last descriptor is closed, as the process's end does, the module requests
    the key. ``callout`` gets the process's id. The process is killed at
    the end of the block.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            become(uid)
            device = os.open(TRIGGER, os.O_RDWR)
            text = callout(os.getpid())
            os.write(device, request_line(description, text, root=root, timeout_ms=timeout_ms, when="close"))
            os.write(writer, b"+")
            os.close(writer)
            signal.pause()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        ready = pipe.read()
    try:
        assert ready == b"+", "the process could not leave its request"
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

"""Requests that the test module makes at a moment of its own: in a process that exits, and
within a write to init_channel; and what its parameters change.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from handlers import CALLOUT, GOOD, NOBODY, Handler, errno_of
from moments import REPORTS, at_the_next_write, process_with_request_at_close, report_of
from testmod import TRIGGER, Acceptor, Channel, in_child, pull, request_line, trigger

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded")]


def with_pid(pid: int) -> str:
    """The callout info that names a process whose namespaces have the credentials."""
    return CALLOUT.replace(":1:uuid", f":{pid}:uuid")


# What the handler of such a request sees of the process that it was made for.
LOOK_AT_THE_PROCESS = r"""
fields=(${5//:/ }) pid=${fields[10]}
grep -E '^(State|Uid):' /proc/$pid/status
readlink /proc/$pid/ns/mnt || echo "no namespaces"
instantiate
(keep_updating good) &
"""


def test_killed_process_is_asked_for_without_its_namespaces(handler: Handler, description: str) -> None:
    """What Lustre does when it closes the files of a process that has been killed."""
    handler(LOOK_AT_THE_PROCESS)
    with process_with_request_at_close(description, with_pid, uid=NOBODY) as pid:
        assert not handler.log()
        os.kill(pid, signal.SIGKILL)
        report = report_of(description)
    assert (report.error, report.stage, report.payload) == (0, "update", GOOD)
    log = handler.log("updated")
    assert f" {NOBODY} " in log.splitlines()[0]
    assert f"Uid:\t{NOBODY}" in log and "no namespaces" in log


def test_close_by_a_living_process(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    device = os.open(TRIGGER, os.O_RDWR)
    os.write(device, request_line(description, CALLOUT, root=True, when="close"))
    with pytest.raises(OSError) as caught:
        os.write(device, request_line(description, CALLOUT, root=True, when="close"))
    assert caught.value.errno == errno.EBUSY
    assert os.read(device, 10) == b"" and not handler.log()
    os.close(device)
    assert report_of(description).error == 0
    assert handler.upcalls() == 1


def test_request_within_a_write_to_init_channel(handler: Handler, description: str) -> None:
    handler("instantiate\n(sleep 0.5; keep_updating good) &")
    with Acceptor(lambda request: b"reply") as acceptor, at_the_next_write(description, CALLOUT):
        started = time.monotonic()
        assert Channel(b"token").write()[0] == 0
        assert time.monotonic() - started > 0.5
        assert report_of(description).payload == GOOD
        # It was for one write.
        assert Channel(b"token").write()[0] == 0
    assert len(acceptor.requests) == 2 and handler.upcalls() == 1


def test_failed_request_within_a_write_fails_the_round_trip(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating failure) &")
    with Acceptor(lambda request: b"reply") as acceptor, at_the_next_write(description, CALLOUT):
        assert Channel(b"token").write()[0] == -errno.ENETUNREACH
    assert not acceptor.requests
    assert report_of(description).error == -errno.ENETUNREACH


def test_request_that_no_write_has_made_goes_with_its_file(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    with at_the_next_write(description, CALLOUT):
        with pytest.raises(OSError) as caught, at_the_next_write(description, CALLOUT):
            pass
        assert caught.value.errno == errno.EBUSY
    with Acceptor(lambda request: b"reply"):
        assert Channel(b"token").write()[0] == 0
    assert not handler.log()


def test_only_root_leaves_a_request_for_init_channel(description: str) -> None:
    line = request_line(description, CALLOUT, root=True, when="channel")

    def arm() -> bytes:
        pull(line)
        return b""

    with pytest.raises(PermissionError):
        in_child(arm, NOBODY)
    assert Path(REPORTS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("when", ["later", "", "NOW"])
def test_unknown_moments_are_refused(description: str, when: str) -> None:
    with pytest.raises(OSError) as caught:
        pull(request_line(description, CALLOUT, root=True, when=when))
    assert caught.value.errno == errno.EINVAL


def test_target_that_is_being_unmounted(parameter: Callable[[str, int], None]) -> None:
    parameter("unmounted", 1)
    assert errno_of(Channel(b"token")) == errno.EINVAL


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_import_that_fails(
    handler: Handler, description: str, parameter: Callable[[str, int], None], uid: int
) -> None:
    """The update is answered with 0 all the same."""
    parameter("import_fails", 1)
    handler("instantiate\n(keep_updating good) &")
    report = trigger(description, CALLOUT, uid=uid)
    assert (report.error, report.payload, report.malformed) == (-errno.EPERM, GOOD, 0)
    handler.log("updated after")

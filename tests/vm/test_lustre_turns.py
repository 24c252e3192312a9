"""Keys of type lgssc whose upcalls wait for their turn: the queue keeper hands in their contexts."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lustre import ALICE, ask, configure, established, failed, parameter
from server import LustreServer
from test_product import soon
from testmod import TokenRequest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]

AT_WORK = 16
WAITING = 12
SOCKET = Path(f"/run/lgss/slots/{ALICE}.queue")


def keeper() -> int:
    """The pid of the queue keeper of alice, who listens at its socket."""
    (inode,) = [
        line.split()[6]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith(str(SOCKET)) and line.split()[3] == "00010000"
    ]
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == f"socket:[{inode}]":
                return int(descriptor.parts[2])
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("is_killed", [False, True], ids=["served", "keeper killed"])
def test_those_that_wait_are_answered(ticket: None, patient_rule: None, is_killed: bool) -> None:
    configure("[upcall]\ntimeout = 200\n[lustre]\nreply_timeout = 200\n")
    go = threading.Event()
    held: list[TokenRequest] = []

    def hold(request: TokenRequest) -> None:
        held.append(request)
        go.wait(200)

    with (
        parameter("answer_limit_ms", 250000),
        parameter("request_limit_ms", 250000),
        LustreServer(before=hold) as server,
        ThreadPoolExecutor(AT_WORK + WAITING) as pool,
    ):
        kernel = {"timeout_ms": 250000}
        first = [pool.submit(ask, ALICE, kernel=kernel) for _ in range(AT_WORK)]
        try:
            assert soon(lambda: len(held) == AT_WORK, 150), len(held)
            rest = [pool.submit(ask, ALICE, kernel=kernel) for _ in range(WAITING)]
            # All of them wait when the last child has handed its request over.
            assert soon(SOCKET.exists, 60)
            assert soon(lambda: waiting() == WAITING, 150), waiting()
            assert len(held) == AT_WORK
            if is_killed:
                os.kill(keeper(), 9)
                for one in rest:
                    assert one.result().error == -errno.EIO
        finally:
            go.set()
        for one in first if is_killed else [*first, *rest]:
            assert established(server, one.result()).request.uid == ALICE


def waiting() -> int:
    """How many requests wait: each has a keyring of root's, which root sees."""
    return sum(
        " keyring " in line and " lgss-" in line for line in Path("/proc/keys").read_text().splitlines()
    )


def test_late_ones_are_answered_with_their_own_words(ticket: None) -> None:
    """With the rule's 30 s: all that wait are told so before their kernel gives up."""
    go = threading.Event()
    with (
        parameter("answer_limit_ms", 90000),
        parameter("request_limit_ms", 90000),
        LustreServer(before=lambda request: go.wait(60) and None) as server,
    ):
        with ThreadPoolExecutor(AT_WORK + 1) as pool:
            kernel = {"timeout_ms": 90000}
            configure("[upcall]\ntimeout = 60\n[lustre]\nreply_timeout = 60\n")
            first = [pool.submit(ask, ALICE, kernel=kernel) for _ in range(AT_WORK)]
            try:
                assert soon(lambda: len(server.requests) == AT_WORK, 60)
                report = ask(ALICE, kernel=kernel)
                assert "no turn within" in failed(report, errno.ETIMEDOUT, "too-many-upcalls")
            finally:
                go.set()
            for one in first:
                one.result()

"""The test module's init_channel: the record, and the answers to it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from handlers import NOBODY, errno_of, fork, wait_gone
from testmod import (
    ACCEPTOR,
    INIT_CHANNEL,
    TRIGGER,
    Acceptor,
    Channel,
    TokenRequest,
    answer_record,
    in_child,
)

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded")]


def test_modes() -> None:
    info = INIT_CHANNEL.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o200, 0)
    assert stat.S_IMODE(ACCEPTOR.stat().st_mode) == 0o600
    assert stat.S_IMODE(TRIGGER.stat().st_mode) == 0o666

    def write() -> bytes:
        Channel(b"token").write()
        return b""

    with pytest.raises(PermissionError):
        in_child(write, NOBODY)


def test_round_trip() -> None:
    token = bytes(range(256)) * 3
    with Acceptor(lambda request: b"reply to " + request.token[::-1]) as acceptor:
        channel = Channel(token)
        status, reply = channel.write()
    expected = b"reply to " + token[::-1]
    assert status == 0
    assert reply == expected.ljust(len(reply), b"\0")
    (request,) = acceptor.requests
    assert request == TokenRequest(request.id, 42, 1, 1000, 1001, b"lustre-MDT0000-mdc-test", token)


def test_round_trips_at_once() -> None:
    tokens = [b"token %d" % number for number in range(24)]

    def ask(token: bytes) -> tuple[int, bytes]:
        return Channel(token).write()

    with Acceptor(lambda request: request.token[::-1]), ThreadPoolExecutor(len(tokens)) as pool:
        answers = list(pool.map(ask, tokens))
    assert [(status, reply.rstrip(b"\0")) for status, reply in answers] == [(0, t[::-1]) for t in tokens]


def test_refusal_of_the_server() -> None:
    with Acceptor(lambda request: -errno.EACCES):
        assert Channel(b"token").write()[0] == -errno.EACCES


def test_nobody_answers(parameter: Callable[[str, int], None]) -> None:
    parameter("answer_limit_ms", 700)
    start = time.monotonic()
    channel = Channel(b"token")
    assert channel.write()[0] == -errno.ETIMEDOUT
    assert 0.7 <= time.monotonic() - start < 5


def test_late_answer_is_dropped(parameter: Callable[[str, int], None]) -> None:
    parameter("answer_limit_ms", 500)
    device = os.open(ACCEPTOR, os.O_RDWR)
    try:
        with ThreadPoolExecutor() as pool:
            future = pool.submit(Channel(b"token").write)
            request = TokenRequest.parse(os.read(device, 70000))
            assert future.result()[0] == -errno.ETIMEDOUT
        with pytest.raises(FileNotFoundError):
            os.write(device, answer_record(request.id, 0, b"late"))
    finally:
        os.close(device)


def test_acceptor_with_too_little_room() -> None:
    device = os.open(ACCEPTOR, os.O_RDWR)
    try:
        with ThreadPoolExecutor() as pool:
            future = pool.submit(Channel(b"token").write)
            # One byte is never enough, and the request stays for the next read.
            with pytest.raises(OSError) as caught:
                os.read(device, 1)
            assert caught.value.errno == errno.EMSGSIZE
            request = TokenRequest.parse(os.read(device, 70000))
            os.write(device, answer_record(request.id, 0, b"reply"))
            assert future.result()[0] == 0
    finally:
        os.close(device)


@pytest.mark.parametrize("size", [1, 8, 71, 73, 144])
def test_wrong_size(size: int) -> None:
    channel = Channel(b"token")
    assert errno_of(channel, (bytes(channel.record) * 2)[:size]) == errno.EINVAL


@pytest.mark.parametrize("version", [0, 1, 3])
def test_wrong_version(version: int) -> None:
    channel = Channel(b"token")
    channel.record.version = version
    assert errno_of(channel) == errno.EINVAL


@pytest.mark.parametrize("field", ["obd_name", "send_token"])
@pytest.mark.parametrize("address", [0, 8, 0xFFFF_8880_0000_0000])
def test_faulty_source(field: str, address: int) -> None:
    channel = Channel(b"token")
    setattr(channel.record, field, address)
    assert errno_of(channel) == errno.EFAULT


@pytest.mark.parametrize("field", ["reply_buf", "status"])
@pytest.mark.parametrize("address", [0, 8, 0xFFFF_8880_0000_0000])
def test_faulty_target(field: str, address: int) -> None:
    channel = Channel(b"token")
    setattr(channel.record, field, address)
    with Acceptor(lambda request: b"reply"):
        assert errno_of(channel) == errno.EFAULT


def test_bounds_of_the_record() -> None:
    assert errno_of(Channel(b"token", obd_name=b"")) == errno.EINVAL
    assert errno_of(Channel(b"token", obd_name=b"x" * 64)) == errno.EINVAL
    empty = Channel(b"token")
    empty.record.send_token_size = 0
    assert errno_of(empty) == errno.EINVAL
    huge = Channel(b"token")
    huge.record.send_token_size = 1 << 63
    assert errno_of(huge) == errno.E2BIG
    tight = Channel(b"token")
    tight.record.reply_buf_size = 4
    with Acceptor(lambda request: b"reply"):
        assert errno_of(tight) == errno.EMSGSIZE
        assert Channel(b"token", obd_name=b"x" * 63).write()[0] == 0


def test_killed_while_it_waits_for_the_acceptor() -> None:
    device = os.open(ACCEPTOR, os.O_RDWR)
    try:
        pid = fork(lambda: Channel(b"token").write())
        request = TokenRequest.parse(os.read(device, 70000))
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid, 2)
        with pytest.raises(FileNotFoundError):
            os.write(device, answer_record(request.id, 0))
    finally:
        os.close(device)

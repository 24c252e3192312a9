"""Tokens that the native front's child writes to init_channel."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.daemon import upcall_messages
from lgss_keyring.formats.callout import parse_request
from tests.support import native
from tests.support.fake_lgssd import Connection
from tests.support.native import StandIn
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, user_callout

from .native_front import CONTEXT, GO, failed, served
from .native_front import folder as folder
from .native_front import stand_in as stand_in
from .native_front import user as user
from .waiting import pace, within

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C compiler here")


class Channel:
    """A FIFO that is full, in the place of init_channel: a write to it waits, as one to Lustre's does,
    and the test finds what it points to as the kernel would."""

    RECORD = struct.Struct("=IIQIIIxxxxQQQQQ")

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.fill()

    def fill(self) -> None:
        """Let the next write wait."""
        try:
            while True:
                os.write(self._end, bytes(4096))
        except BlockingIOError:
            pass

    def writer(self, stand_in: StandIn) -> tuple[int, int]:
        """The process that is writing, and the address of its record."""
        found: list[tuple[int, int]] = []

        def look() -> bool:
            for pid in stand_in.child():
                words = Path(f"/proc/{pid}/syscall").read_text().split()
                if words[0] == "1" and int(words[3], 16) == self.RECORD.size:
                    found.append((pid, int(words[2], 16)))
            return bool(found)

        assert within(2, look)
        return found[0]

    def release(self) -> None:
        """Let the write go on."""
        os.read(self._end, 1 << 20)

    def close(self) -> None:
        os.close(self._end)
        self.path.unlink()


@pytest.fixture
def channel(stand_in: StandIn) -> Iterator[Channel]:
    channel = Channel(stand_in.directory / "init_channel")
    yield channel
    channel.close()


def token(lgssd: Connection, path: Path, limit: int = 5) -> None:
    request = parse_request(lgssd.upcall.arguments)
    lgssd.say(upcall_messages.pack_token(request, 0x10001, 555, limit, str(path), b"tok\0en" * 100))


def test_token_and_reply(stand_in: StandIn, user: Requestor, channel: Channel) -> None:
    """The record of docs/protocol.md 6, and both ways in which Lustre may answer."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        for status in (0, -errno.EACCES):
            token(lgssd, channel.path)
            pid, address = channel.writer(stand_in)
            with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:

                def at(where: int, size: int) -> bytes:
                    memory.seek(where)
                    return memory.read(size)

                record = channel.RECORD.unpack(at(address, channel.RECORD.size))
                version, secid, obd_name, service, uid, gid, size, data, reply_size, reply, result = record
                assert (version, secid, service, uid, gid) == (2, 42, 0x10001, USER_UID, 555)
                assert at(obd_name, 17) == b"lgss-MDT0000-mdc\0"
                assert at(data, size) == b"tok\0en" * 100
                memory.seek(reply)
                memory.write(b"a reply")
                memory.seek(result)
                memory.write(struct.pack("=q", status))
            channel.release()
            answer = lgssd.reply()
            channel.fill()
            assert (answer.status, answer.errno) == (status, 0)
            assert answer.reply == (b"" if status else b"a reply".ljust(reply_size, b"\0"))
        assert lgssd.answer(0, CONTEXT) == 0

    with served(stand_in, script) as name:
        assert user.ask(name(), user_callout()).data == CONTEXT


@pytest.mark.parametrize(
    ("path", "number"),
    [("/nonexistent/init_channel", errno.ENOENT), ("/dev/full", errno.ENOSPC), ("/dev/null", 0)],
)
def test_token_that_is_not_taken(stand_in: StandIn, user: Requestor, path: str, number: int) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        token(lgssd, Path(path))
        answer = lgssd.reply()
        assert (answer.status, answer.errno, answer.reply) == (0 if number else -errno.EIO, number, b"")
        assert lgssd.answer(0, CONTEXT) == 0

    with served(stand_in, script) as name:
        assert user.ask(name(), user_callout()).data == CONTEXT


def test_write_that_does_not_end(stand_in: StandIn, user: Requestor, channel: Channel) -> None:
    """The witness ends it, and answers."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        token(lgssd, channel.path, limit=1)
        assert lgssd.has_ended(5)

    with served(stand_in, script) as name:
        answer = user.ask(name(), user_callout())
    assert failed(answer.data) == errno.ETIMEDOUT
    assert answer.updated is not None and 0.9 < answer.updated < pace(3)

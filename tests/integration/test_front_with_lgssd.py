"""An upcall with lgssd, through each front: what the caller, the key and lgssd see."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon import upcall_messages
from lgss_keyring.formats import payload
from lgss_keyring.formats.callout import parse_request
from lgss_keyring.front import lgssd_messages
from tests.support.fake_lgssd import Connection
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, machine_callout, user_callout

from .answers import proven
from .fronts import CONTEXT, Front, send_token
from .fronts import front as front
from .waiting import pace, within

GO, AT_WORK = lgssd_messages.GO, lgssd_messages.AT_WORK
POOR_UID = 61339
FAILED = payload.FailurePayload(errno.EKEYEXPIRED, 0).pack()


def test_word_and_context(front: Front, user: Requestor) -> None:
    seen = []

    def script(lgssd: Connection) -> None:
        seen.append(lgssd.upcall)
        lgssd.say(GO)
        lgssd.say(AT_WORK)
        assert lgssd.answer(0, CONTEXT, life=77) == 0
        assert lgssd.has_ended()

    with front.served(script, options="--timeout 9 -R A.REALM") as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        assert not upcalls.log_file.exists()  # lgssd writes the line
    assert answer.data == CONTEXT
    (upcall,) = seen
    assert (upcall.timeout, upcall.realm, upcall.config) == (9, "A.REALM", str(upcalls.config_file))
    assert 0 <= upcall.elapsed < pace(0.5)
    request = parse_request(upcall.arguments)
    assert (request.key, request.requestor_uid, request.uid) == (answer.key, USER_UID, USER_UID)


def test_a_key_lives_as_long_as_its_answer(front: Front, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert lgssd.answer(0, CONTEXT, life=2) == 0

    with front.served(script) as upcalls:
        key = user.ask(upcalls.name(), user_callout()).key
        user.run(["keyctl", "pipe", str(key)])
        time.sleep(2.2)
        with pytest.raises(RuntimeError, match="expired"):
            user.run(["keyctl", "pipe", str(key)])


def test_a_late_word_holds_nobody_up(front: Front, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        assert released.wait(10)
        lgssd.say(GO)
        assert lgssd.answer(0, CONTEXT) == 0

    released = threading.Event()
    with front.served(script, word_ms=50) as upcalls:
        answer = user.ask(upcalls.name(), user_callout(), wait=0)
        released.set()
        assert answer.error == 0 and 0.05 < answer.blocked < pace(0.5)
        assert user.ask(upcalls.name("next"), user_callout()).data == CONTEXT


@pytest.mark.parametrize("callout", [user_callout(), machine_callout()], ids=["user", "machine"])
def test_errno_before_the_word_is_the_callers(front: Front, callout: str) -> None:
    asked = []

    def script(lgssd: Connection) -> None:
        asked.append(lgssd.upcall)
        lgssd.say(AT_WORK)
        assert lgssd.answer(errno.EKEYEXPIRED, FAILED, 3) == 0
        assert lgssd.has_ended()

    with Requestor(0) as root, front.served(script) as upcalls:
        name = upcalls.name()
        for _ in range(2):
            assert root.ask(name, callout).error == errno.EKEYEXPIRED
        assert len(asked) == 1  # the second answer was the kernel's
        time.sleep(3.2)
        assert root.ask(name, callout).error == errno.EKEYEXPIRED and len(asked) == 2


def test_errno_behind_the_word_is_in_the_key(front: Front, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert lgssd.answer(errno.EKEYEXPIRED, FAILED, 2) == 0

    with front.served(script) as upcalls:
        assert user.ask(upcalls.name(), user_callout()).data == FAILED


def test_a_context_that_comes_before_the_word_is_not_lost(front: Front, user: Requestor) -> None:
    """The front may also serve the upcall by itself then."""

    def script(lgssd: Connection) -> None:
        lgssd.say(upcall_messages.pack_answer(0, 30, 1.0, CONTEXT))
        lgssd.has_ended()

    with front.served(script) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        if answer.data != CONTEXT:
            proven(front.site, answer)


def test_the_machines_front_waits_as_long_as_lgssd_is_at_work(front: Front, root: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        for _ in range(5):
            lgssd.say(AT_WORK)
            time.sleep(0.4)
        lgssd.say(GO)
        assert lgssd.answer(0, CONTEXT) == 0

    with front.served(script, word_ms=50) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
    assert answer.data == CONTEXT and answer.blocked > 1.9


def test_an_answer_that_the_quota_has_no_room_for(front: Front) -> None:
    """It becomes the failure that this is, which has twelve bytes."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert filled.wait(30)
        assert lgssd.answer(0, bytes(4000)) == errno.EDQUOT

    filled = threading.Event()
    with Requestor(POOR_UID) as user, front.served(script) as upcalls:
        name = upcalls.name()
        assert user.ask(name, user_callout(POOR_UID), wait=0).error == 0
        with pytest.raises(RuntimeError, match="quota"):
            for number in range(1000):
                user.run(["keyctl", "add", "user", f"fills-the-quota-{number}", "x" * 1500, "@s"])
        user.run(["keyctl", "revoke", "%user:fills-the-quota-0"])
        filled.set()
        answer = user.ask(name, user_callout(POOR_UID))
        assert payload.unpack(answer.data) == payload.FailurePayload(errno.EDQUOT, 0)


def test_a_key_that_nobody_waits_for(front: Front, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert revoked.wait(10)
        assert lgssd.answer(0, CONTEXT) == errno.EKEYREVOKED

    revoked = threading.Event()
    with front.served(script) as upcalls:
        key = user.ask(upcalls.name(), user_callout(), wait=0).key
        user.run(["keyctl", "revoke", str(key)])
        revoked.set()


def test_credentials_in_a_session_keyring_are_not_for_lgssd(front: Front, user: Requestor) -> None:
    asked: list[Connection] = []
    user.run(["keyctl", "newring", "_krb_test", "@s"])
    with front.served(asked.append) as upcalls:
        proven(front.site, user.ask(upcalls.name(), user_callout()))
    assert not asked


# Tokens for init_channel.


class Channel:
    """A FIFO that is full, in the place of init_channel: a write to it waits, as one to Lustre's
    does, and the test finds what it points to as the kernel would."""

    RECORD = struct.Struct("=IIQIIIxxxxQQQQQ")

    def __init__(self, front: Front) -> None:
        self.path = Path(f"{front.socket()}.init_channel")
        self._front = front
        os.mkfifo(self.path)
        self._end = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.fill()

    def fill(self) -> None:
        """Let the next write wait."""
        try:
            while True:
                os.write(self._end, bytes(4096))
        except BlockingIOError:
            pass

    def writer(self) -> tuple[int, int]:
        """The process that is writing, and the address of its record."""
        found: list[tuple[int, int]] = []

        def look() -> bool:
            for pid in self._front.pids():
                try:
                    words = Path(f"/proc/{pid}/syscall").read_text().split()
                except OSError:
                    continue  # it has ended
                if words[0] == "1" and int(words[3], 16) == self.RECORD.size:
                    found.append((pid, int(words[2], 16)))
            return bool(found)

        assert within(5, look)
        return found[0]

    def take(self, status: int, reply: bytes) -> tuple[tuple[int, ...], bytes, bytes]:
        """Do with the record that is being written what the kernel does.  Returns its five numbers,
        the obd name and the token."""
        pid, address = self.writer()
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:

            def at(where: int, size: int) -> bytes:
                memory.seek(where)
                return memory.read(size)

            record = self.RECORD.unpack(at(address, self.RECORD.size))
            version, secid, obd_name, service, uid, gid, size, data, reply_size, buffer, result = record
            assert reply_size == 8192
            memory.seek(buffer)
            memory.write(reply)
            memory.seek(result)
            memory.write(struct.pack("=q", status))
            found = (version, secid, service, uid, gid), at(obd_name, 64).split(b"\0")[0], at(data, size)
        os.read(self._end, 8192)
        return found

    def close(self) -> None:
        os.close(self._end)
        self.path.unlink()


@pytest.fixture
def channel(front: Front) -> Channel:
    return Channel(front)


def test_token_and_reply(front: Front, user: Requestor, channel: Channel) -> None:
    """The record of docs/protocol.md 6, and both ways in which Lustre may answer."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        for status in (0, -errno.EACCES):
            channel.fill()
            send_token(lgssd, channel.path)
            numbers, name, token = channel.take(status, b"a reply")
            assert (numbers, name) == ((2, 42, 0x10001, USER_UID, 555), b"lgss-MDT0000-mdc")
            assert token == b"tok\0en" * 100
            reply = lgssd.reply()
            assert (reply.status, reply.errno) == (status, 0)
            assert reply.reply == (b"" if status else b"a reply".ljust(8192, b"\0"))
        assert lgssd.answer(0, CONTEXT) == 0

    with front.served(script) as upcalls:
        assert user.ask(upcalls.name(), user_callout()).data == CONTEXT
    channel.close()


@pytest.mark.parametrize(
    ("path", "number"),
    [("/nonexistent/init_channel", errno.ENOENT), ("/dev/full", errno.ENOSPC), ("/dev/null", 0)],
)
def test_a_token_that_is_not_taken(front: Front, user: Requestor, path: str, number: int) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        send_token(lgssd, Path(path))
        reply = lgssd.reply()
        assert (reply.status, reply.errno, reply.reply) == (0 if number else -errno.EIO, number, b"")
        assert lgssd.answer(0, CONTEXT) == 0

    with front.served(script) as upcalls:
        assert user.ask(upcalls.name(), user_callout()).data == CONTEXT


def test_a_write_that_does_not_end(front: Front, user: Requestor, channel: Channel) -> None:
    """The witness ends it, and answers."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        send_token(lgssd, channel.path, limit=1)
        assert lgssd.has_ended(10)

    with front.served(script) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        (event,) = upcalls.log("LGSS_ERROR=limit")
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ETIMEDOUT, 0)
    assert answer.updated is not None and 0.9 < answer.updated < pace(4)
    assert "a write to init_channel did not return" in event["message"]
    channel.close()

"""The native front and its child with lgssd: what they do at each message, and when one of them is killed."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.formats.callout import parse_request
from tests.support import native
from tests.support.fake_lgssd import Connection
from tests.support.native import StandIn
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, machine_callout, user_callout

from .native_front import CONTEXT, GO, PULSE, called, failed, served
from .native_front import folder as folder
from .native_front import root as root
from .native_front import stand_in as stand_in
from .native_front import user as user
from .waiting import pace, within

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C compiler here")


def test_word_and_context(stand_in: StandIn, user: Requestor) -> None:
    upcalls = []

    def script(lgssd: Connection) -> None:
        upcalls.append(lgssd.upcall)
        lgssd.say(GO)
        lgssd.say(PULSE)
        assert lgssd.answer(0, CONTEXT, life=77) == 0
        assert lgssd.has_ended()

    options = "--timeout 9 -R A.REALM --config /etc/lgss_other.toml"
    with served(stand_in, script, options) as name:
        answer = user.ask(name(), user_callout())
    assert answer.data == CONTEXT and answer.blocked < pace(0.5)
    (upcall,) = upcalls
    assert (upcall.timeout, upcall.realm, upcall.config) == (9, "A.REALM", "/etc/lgss_other.toml")
    assert 0 <= upcall.elapsed < pace(0.5)
    request = parse_request(upcall.arguments)
    assert (request.key, request.requestor_uid, request.uid) == (answer.key, USER_UID, USER_UID)
    assert not stand_in.calls()


@pytest.mark.parametrize("life", [2, 0])
def test_life_of_a_user_key(stand_in: StandIn, user: Requestor, life: int) -> None:
    """It has --timeout and a second while it waits, and the life of the answer then; none is without end."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert lgssd.answer(0, CONTEXT, life=life) == 0

    with served(stand_in, script) as name:
        assert user.ask(name(), user_callout()).data == CONTEXT
        serial = user.ask(name(), user_callout(), wait=0).key
        assert within(1, lambda: not stand_in.pids())
        time.sleep(2.2)
        with pytest.raises(RuntimeError, match="expired"):
            user.run(["keyctl", "pipe", str(serial)])


def test_late_word_does_not_hold_the_caller_up(stand_in: StandIn, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        time.sleep(0.6)
        lgssd.say(GO)
        assert lgssd.answer(0, CONTEXT) == 0

    with served(stand_in, script, word_ms=50) as name:
        answer = user.ask(name(), user_callout())
    assert answer.data == CONTEXT and 0.05 < answer.blocked < pace(0.5)


@pytest.mark.parametrize("callout", [user_callout(), machine_callout()], ids=["user", "machine"])
def test_errno_before_the_word_is_the_callers(stand_in: StandIn, callout: str) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(PULSE)
        assert lgssd.answer(errno.EKEYEXPIRED, payload.FailurePayload(errno.EKEYEXPIRED, 0).pack(), 3) == 0
        assert lgssd.has_ended()

    with Requestor(0) as root, served(stand_in, script) as name:
        description = name()
        answer = root.ask(description, callout)
        assert (answer.error, answer.key) == (errno.EKEYEXPIRED, 0)
        assert root.ask(description, callout).error == errno.EKEYEXPIRED  # by the kernel, for that life
    assert not stand_in.calls()


def test_failure_after_the_word(stand_in: StandIn, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert lgssd.answer(errno.ETIMEDOUT, payload.FailurePayload(errno.ETIMEDOUT, 7).pack(), 2) == 0

    with served(stand_in, script) as name:
        answer = user.ask(name(), user_callout())
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ETIMEDOUT, 7)


def test_answer_that_the_quota_has_no_room_for(stand_in: StandIn, user: Requestor) -> None:
    """It becomes the failure that this is."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert lgssd.answer(0, bytes(4000)) == errno.EDQUOT

    with served(stand_in, script) as name:
        with pytest.raises(RuntimeError, match="quota"):
            for number in range(1000):
                user.run(["keyctl", "add", "user", f"lgss-fills-the-quota-{number}", "x" * 1500, "@s"])
        # Room for the request, but not for the answer.
        user.run(["keyctl", "revoke", "%user:lgss-fills-the-quota-0"])
        assert failed(user.ask(name(), user_callout()).data) == errno.EDQUOT


def test_revoked_key(stand_in: StandIn, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        assert go_on.wait(5)
        assert lgssd.answer(0, CONTEXT) == errno.EKEYREVOKED

    go_on = threading.Event()
    with served(stand_in, script) as name:
        answer = user.ask(name(), user_callout(), wait=0)
        user.run(["keyctl", "revoke", str(answer.key)])
        go_on.set()


def test_machine(stand_in: StandIn, root: Requestor) -> None:
    """Its front waits longer for the word than a user's."""

    def script(lgssd: Connection) -> None:
        for _ in range(4):
            lgssd.say(PULSE)
            time.sleep(0.4)
        lgssd.say(GO)
        assert lgssd.answer(0, CONTEXT) == 0

    with served(stand_in, script, word_ms=50) as name:
        answer = root.ask(name(), machine_callout())
    assert answer.data == CONTEXT and answer.blocked > 1.5


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_child(stand_in: StandIn, user: Requestor, sign: signal.Signals) -> None:
    """The witness answers, and leaves the line in the log to lgss_keyring.py."""

    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        os.kill(stand_in.child()[1], sign)
        assert lgssd.has_ended()

    with served(stand_in, script) as name:
        answer = user.ask(name(), user_callout())
    assert answer.data, answer
    assert failed(answer.data) == errno.EIO and answer.updated is not None and answer.updated < pace(1)
    words, _ = called(stand_in)
    assert words[words.index("--killed") + 1] == f"{errno.EIO}:signal {int(sign)}"

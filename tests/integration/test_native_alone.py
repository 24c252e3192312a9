"""What the native front leaves to lgss_keyring.py."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from tests.support import native
from tests.support.fake_lgssd import Connection
from tests.support.native import StandIn
from tests.support.requestor import Requestor
from tests.support.site import machine_callout, user_callout

from .native_front import GO, PULSE, YOURSELF, alone, served
from .native_front import folder as folder
from .native_front import root as root
from .native_front import stand_in as stand_in
from .native_front import user as user
from .waiting import pace, within

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C compiler here")


@pytest.mark.parametrize(
    ("last", "is_before_word"),
    [
        (YOURSELF, True),
        (b"", True),
        (b"?", True),
        (YOURSELF, False),
        (b"", False),
        (b"A", False),
        (b"T/", False),
    ],
)
def test_lgssd_that_leaves_it_to_the_child(
    stand_in: StandIn, user: Requestor, last: bytes, is_before_word: bool
) -> None:
    """By Y, by the end of the connection, or by nonsense."""

    def script(lgssd: Connection) -> None:
        if not is_before_word:
            lgssd.say(GO)
            time.sleep(0.1)
        if last:
            lgssd.say(last)

    with served(stand_in, script, "--timeout 20") as name:
        answer = user.ask(name(), user_callout(), wait=0)
        assert answer.error == 0 and answer.blocked < pace(0.5)
    words, pipe = alone(stand_in)
    assert pipe == "1" and words[2:4] == ["--timeout", "20"] and words[-9] == str(answer.key)
    started = int(words[words.index("--instantiated") + 1].split(":")[1])
    assert 0 <= time.monotonic() * 1000 - started < pace(3000)


def test_silent_lgssd(stand_in: StandIn, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        time.sleep(1)
        lgssd.say(PULSE)
        assert lgssd.has_ended(3)

    with served(stand_in, script) as name:
        started = time.monotonic()
        user.ask(name(), user_callout(), wait=0)
        assert alone(stand_in)[1] == "1"
        assert 2.4 < time.monotonic() - started < pace(4)


@pytest.mark.parametrize("last", [YOURSELF, b"", None], ids=["Y", "end", "silence"])
def test_machine_that_lgssd_does_not_serve(stand_in: StandIn, root: Requestor, last: bytes | None) -> None:
    """The front becomes lgss_keyring.py, with nothing done yet: its child is gone."""

    def script(lgssd: Connection) -> None:
        if last is None:
            assert lgssd.has_ended(5)
        elif last:
            lgssd.say(last)

    with served(stand_in, script) as name:
        answer = root.ask(name(), machine_callout())
        assert answer.error == errno.ENOKEY  # the stand-in does nothing
        assert answer.blocked < pace(3)
        assert alone(stand_in)[1] is None


def test_killed_front(stand_in: StandIn, user: Requestor) -> None:
    """The child finds out by itself what came of the key: lgss_keyring.py does."""

    def script(lgssd: Connection) -> None:
        # The front and its two children.
        assert within(5, lambda: len(stand_in.pids()) == 3)
        os.kill(stand_in.pids()[0], signal.SIGKILL)
        time.sleep(0.3)

    with served(stand_in, script) as name:
        assert user.ask(name(), user_callout()).error == errno.ENOKEY
    assert alone(stand_in)[1] == ""

"""How the front brings an answer to a key that does not take it, and the last resort."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

import pytest

from lgss_keyring.front import answer, keyctl, refusal
from lgss_keyring.front.arguments import Call

TRIES_AT_MOST = 1000


class Clock:
    """Stands still but for sleep()."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", clock.monotonic)
        patch.setattr(time, "sleep", clock.sleep)
        yield clock


class Key:
    """Gives these errnos to one update after the other, and the last one to all others; 0 takes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
        self._numbers = list(numbers)
        self.payload, self.life, self.tries = b"", 0, 0
        monkeypatch.setattr(keyctl, "update", self._update)
        monkeypatch.setattr(keyctl, "set_timeout", self._set_timeout)

    def _update(self, key: int, payload: bytes) -> None:
        self.tries += 1
        assert self.tries < TRIES_AT_MOST, "it tries for ever"
        number = self._numbers.pop(0) if len(self._numbers) > 1 else self._numbers[0]
        if number:
            raise OSError(number, os.strerror(number))
        self.payload = payload

    def _set_timeout(self, key: int, seconds: int) -> None:
        self.life = seconds


def test_update_is_tried_again_while_the_kernel_has_not_bound_its_context(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    key = Key(monkeypatch, errno.EAGAIN, errno.EAGAIN, 0)
    answer.update(5, b"payload", clock.now + 5)
    assert (key.payload, key.tries) == (b"payload", 3)


@pytest.mark.parametrize("number", [errno.ENOKEY, errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.EDQUOT])
def test_update_of_a_key_that_is_gone_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, number: int
) -> None:
    key = Key(monkeypatch, errno.EAGAIN, number)
    started = clock.now
    with pytest.raises(OSError) as caught:
        answer.update(5, b"payload", started + 5)
    assert (caught.value.errno, key.tries) == (number, 2) and clock.now < started + 0.1


def test_update_that_is_never_taken_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    key = Key(monkeypatch, errno.EAGAIN)
    started = clock.now
    with pytest.raises(BlockingIOError):
        answer.update(5, b"payload", started + 5)
    assert started + 4.8 < clock.now <= started + 5
    assert key.tries < 100  # a hundred such upcalls at once are no load


CALL = Call(["create", "5", "lgssc", "x", "callout", "1000", "0", "0", "0", "0"])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(refusal, "_say", lines.append)
    return lines


def test_last_resort_answers_the_key(monkeypatch: pytest.MonkeyPatch, clock: Clock, said: list[str]) -> None:
    key = Key(monkeypatch, errno.EAGAIN, 0)
    refusal.last_resort(5, CALL, ImportError("no module"))
    assert key.payload == answer.failure(errno.ELIBACC) and key.life == answer.FAILURE_LIFE
    assert said == ["key 5: ImportError: no module; reinstall lgss_keyring | LGSS_REQUESTOR=1000"]


@pytest.mark.parametrize("number", [errno.ENOKEY, errno.EAGAIN])
def test_last_resort_ends_when_the_key_is_gone(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, said: list[str], number: int
) -> None:
    """Or while it never takes the answer.  The line is written all the same."""
    key = Key(monkeypatch, number)
    started = clock.now
    refusal.last_resort(5, CALL, MemoryError())
    assert not key.payload and not key.life and clock.now <= started + refusal.PATIENCE
    assert len(said) == 1 and "short of memory" in said[0]

"""What becomes of a key whose answer the kernel does not take."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest

from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.front import answer as front_answer
from lgss_keyring.monitor import key_answer
from lgss_keyring.system import keys
from lgss_keyring.system.log import Log

CONTEXT = Answer(b"c" * 300, int(time.time()) + 1000, "alice", None)
NO_TICKET = Answer.of_failure(Failed(errno.ENOKEY, 0, Kind.NO_TICKET, "no ticket"))
FAILURE_BYTES = 12


class Key:
    """A key with room for so many bytes, or whose update gives one errno."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 1000, number: int = 0) -> None:
        self.payload, self.life, self.is_gone = b"\0", 31, False
        self._room, self._number = room, number
        monkeypatch.setattr(front_answer, "update", self._update)
        monkeypatch.setattr(keys, "set_timeout", self._set_timeout)
        monkeypatch.setattr(keys, "invalidate", self._invalidate)

    def _update(self, key: int, payload: bytes, deadline: float) -> None:
        number = self._number or (errno.EDQUOT if len(payload) > self._room else 0)
        if number:
            raise OSError(number, os.strerror(number))
        self.payload = payload

    def _set_timeout(self, key: int, seconds: int) -> None:
        self.life = seconds

    def _invalidate(self, key: int) -> None:
        self.is_gone = True


class Lines(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, level: str, message: str, always: bool = False, **fields: object) -> None:
        self.lines.append((level, message, fields))


def give(answer: Answer) -> tuple[bool, str, dict[str, Any]]:
    log = Lines()
    given = key_answer.give(7, "user", answer, time.monotonic(), log, "; and more")
    ((level, message, fields),) = log.lines
    return given, message, {"level": level, **fields}


def test_an_answer_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(monkeypatch)
    given, message, _ = give(CONTEXT)
    assert given and key.payload == CONTEXT.payload and "handed to the kernel" in message
    given, message, fields = give(NO_TICKET)
    assert not given and key.life == 2 and message.endswith("no ticket; and more")
    assert fields["error"] == Kind.NO_TICKET


def test_a_context_that_has_no_room_becomes_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(monkeypatch, room=FAILURE_BYTES)
    given, message, fields = give(CONTEXT)
    assert not given and not key.is_gone and key.life == 2
    assert key.payload == front_answer.failure(errno.EDQUOT)
    assert (fields["error"], fields["errno"]) == (Kind.RESOURCES, "EDQUOT") and "quota" in message


@pytest.mark.parametrize("answer", [CONTEXT, NO_TICKET], ids=["context", "failure"])
def test_an_answer_that_has_no_room_takes_the_key_away(
    monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    key = Key(monkeypatch, room=FAILURE_BYTES - 1)
    give(answer)
    assert key.is_gone


@pytest.mark.parametrize("number", sorted(keys.GONE | {errno.EAGAIN}))
def test_a_key_that_nobody_waits_for_is_left_alone(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    key = Key(monkeypatch, number=number)
    given, message, fields = give(CONTEXT)
    assert not given and not key.is_gone and fields["error"] == Kind.UNTAKEN and "is lost" in message
    assert ("nobody waits" in message) == (number != errno.EAGAIN) and fields["level"] == "warning"


def test_a_key_that_could_not_be_given_its_life_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(monkeypatch)

    def fails(key: int, seconds: int) -> None:
        raise LgssError("no", errno=errno.EKEYREVOKED)

    monkeypatch.setattr(keys, "set_timeout", fails)
    assert not give(CONTEXT)[0] and key.is_gone

"""The witness: which keys it answers for a process that was killed, and what a daemon leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import pytest

from lgss_keyring.front import answer, keyctl, oom, witness
from lgss_keyring.front.arguments import Call

from .test_identity import in_child

USER = Call(["create", "5", "user", "lgss:x", "1:krb5:7:7::i:0:0x1:obd:0x1:0", "7", "7", "0", "0", "0"])
LUSTRE = Call(["create", "5", "lgssc", "x", "1:krb5:7:7::i:0:0x1:obd:0x1:0", "7", "7", "0", "0", "0"])
FAILURE = len(answer.failure(1))


class Key:
    """A key that holds so many bytes, or whose every use gives an errno."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 0, number: int = 0) -> None:
        self.payload, self.lives = b"", list[int]()
        self.no_update = self.no_life = 0
        self._size, self._number = size, number
        for name in ("read", "update", "set_timeout"):
            monkeypatch.setattr(keyctl, name, getattr(self, name))

    @staticmethod
    def _fail(number: int) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    def read(self, key: int) -> int:
        self._fail(self._number)
        return self._size

    def update(self, key: int, payload: bytes) -> None:
        self._fail(self.no_update)
        self.payload = payload

    def set_timeout(self, key: int, seconds: int) -> None:
        self._fail(self.no_life)
        self.lives.append(seconds)


@pytest.mark.parametrize(
    ("call", "size", "number", "has", "lives"),
    [
        (USER, 0, 0, False, []),
        (USER, 1, 0, False, []),
        (USER, 2, 0, True, []),
        (USER, FAILURE, 0, True, [2]),
        (USER, 100, 0, True, []),
        (LUSTRE, FAILURE, 0, True, []),
        (LUSTRE, 0, errno.EOPNOTSUPP, False, []),
        (LUSTRE, 0, errno.EACCES, False, []),
        (USER, 0, errno.EKEYEXPIRED, True, []),
        (USER, 0, errno.ENOKEY, True, []),
    ],
)
def test_keys_that_have_their_answer(
    monkeypatch: pytest.MonkeyPatch, call: Call, size: int, number: int, has: bool, lives: list[int]
) -> None:
    """One that was killed between its answer and its life has it, and gets the life."""
    key = Key(monkeypatch, size, number)
    assert witness.has_answer(5, call) == has and key.lives == lives


def test_answer_that_goes_meanwhile_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(monkeypatch, FAILURE)
    key.no_life = errno.ENOKEY
    assert witness.has_answer(5, USER)


def watched(call: Call, ends: str) -> list[str]:
    """The lines of a witness whose process ends by itself, or by SIGKILL."""
    lines: list[str] = []
    server = os.fork()
    if server == 0:
        if ends == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)

    def log(key: int, call: Call, reason: str, number: int) -> None:
        assert (key, number) == (5, errno.EIO)
        lines.append(reason)

    witness.watch(server, 5, call, log)
    return lines


@pytest.mark.parametrize(("call", "lives"), [(USER, [2]), (LUSTRE, [])])
def test_killed_process_is_answered_for(
    monkeypatch: pytest.MonkeyPatch, call: Call, lives: list[int]
) -> None:
    key = Key(monkeypatch, 1)
    assert watched(call, "killed") == ["lgss_keyring was killed by signal 9 before it had an answer"]
    assert (key.payload, key.lives) == (answer.failure(errno.EIO), lives)


def test_process_that_ended_by_itself_is_not_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(monkeypatch, 1)
    assert watched(USER, "itself") == [] and key.payload == b""


def test_key_that_has_its_answer_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(monkeypatch, 100)
    assert watched(USER, "killed") == [] and key.payload == b""


def test_answer_that_the_key_does_not_take_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of Lustre's that is not bound within 5 s is tried no longer."""
    key = Key(monkeypatch, 1)
    key.no_update = errno.EAGAIN
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    (line,) = watched(LUSTRE, "killed")
    assert line.endswith("; cannot update key 5: Resource temporarily unavailable")
    assert 104.8 <= now[0] <= 105


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stands for /proc/self/oom_score_adj, which a container's root may not be allowed to lower."""
    path = tmp_path / "score"
    path.write_text("")
    opened = os.open

    def open_other(name: str, flags: int, *more: int) -> int:
        return opened(str(path) if name == "/proc/self/oom_score_adj" else name, flags, *more)

    monkeypatch.setattr(os, "open", open_other)
    return path


def opened() -> list[int]:
    """The descriptors that this process has open."""
    found = []
    for number in range(256):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


@pytest.mark.parametrize("closed", [False, True])
def test_witness_stays_when_the_front_has_gone(score: Path, closed: bool) -> None:
    """In a session of its own, without the front's streams, and the last that memory is taken from."""

    def work() -> object:
        if closed:
            os.close(0)
        before = {0, *opened()}
        session = os.getsid(0)
        witness.detach()
        streams = {os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)}
        return os.getsid(0) != session, os.getcwd(), streams, set(opened()) == before

    assert in_child(work) == "(True, '/', {'/dev/null'}, True)"
    assert score.read_text() == "-900"


def test_score_of_a_worker_is_an_ordinary_one(score: Path) -> None:
    before = opened()
    oom.set_score(oom.ORDINARY)
    assert score.read_text() == "0" and opened() == before
    score.unlink()
    oom.set_score(oom.SPARED)  # a container without /proc
    assert opened() == before

"""The front of a good call: which key calls it makes, in its processes, without any key."""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lgss_keyring.front import answer, arguments, keyctl, main, oom, refusal, requestor_place, word
from lgss_keyring.front.arguments import Call
from lgss_keyring.front.word import Child

USER = ["create", "5", "user", "lgss:x", "1:krb5:7:7::i:0:0x1:obd:0x1:0", "7", "7", "11", "0", "13"]
LUSTRE = [*USER[:2], "lgssc", "x", *USER[4:]]
MACHINE = [*LUSTRE[:4], USER[4].replace("7:7::", "0:0:r:"), "0", "0", *USER[7:]]
SESSION = 900


class Told:
    """What processes have said, one line each, with the name of the process before it."""

    def __init__(self) -> None:
        self.front = 0
        """The pid of the front."""
        self.order: list[str] = []
        self._reader, self._writer = os.pipe()

    def say(self, *words: object) -> None:
        name = "front" if os.getpid() == self.front else "child"
        os.write(self._writer, (" ".join(str(each) for each in (name, *words)) + "\n").encode())

    def lines(self) -> list[str]:
        """All lines, when all processes that could say any have ended."""
        os.close(self._writer)
        with os.fdopen(self._reader) as end:
            self.order = end.read().splitlines()
        return self.order


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    found = Told()
    for name in ("assume_authority", "link", "set_timeout", "instantiate", "reject"):
        monkeypatch.setattr(keyctl, name, functools.partial(found.say, name))
    monkeypatch.setattr(keyctl, "alarm", lambda seconds: None)
    monkeypatch.setattr(keyctl, "get_keyring_id", lambda keyring: SESSION)
    monkeypatch.setattr(keyctl, "members", lambda keyring, limit: [keyring * 10])
    monkeypatch.setattr(keyctl, "describe", lambda key: b"keyring;7;7;3f;_pid")
    monkeypatch.setattr(requestor_place, "hold_to_it", lambda key, call: None)
    monkeypatch.setattr(arguments, "NOTES", str(tmp_path))
    monkeypatch.setattr(arguments, "SLOTS", str(tmp_path))
    return found


def nobody(*_: object) -> None:
    raise AssertionError("it was refused")


def run(
    told: Told, words: list[str], work: Callable[[Child], object] = bool
) -> tuple[int, list[str], list[str]]:
    """The front's exit status, its calls, and those of its children, which do ``work`` with their ends
    of the pipes if the front waits for a word."""

    def serve(key: int, call: Call, front: Child) -> None:
        signal.alarm(20)
        if front.is_due:
            work(front)
        told.say("serves", key, call.has_keyring, front.witness == os.getppid())

    front = os.fork()
    if front == 0:
        try:
            signal.alarm(20)
            told.front = os.getpid()
            os._exit(main.run(["--timeout", "9", *words], serve, nobody))
        finally:
            os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(front, 0)[1])
    lines = told.lines()
    of_front, of_child = ([line[6:] for line in lines if line.startswith(who)] for who in ("front", "child"))
    return status, of_front, of_child


def test_user_key(told: Told) -> None:
    """Its child possesses it by the link, and it ends by itself, one second later than the upcall."""
    status, front, child = run(told, USER)
    assert (status, front) == (0, ["assume_authority 5", "set_timeout 5 10", "instantiate 5 b'\\x00' 900"])
    assert child[0] == "assume_authority 0" and child[-1] == "serves 5 False True"


def test_key_of_lustre(told: Told) -> None:
    """No payload and no keyring: with these the kernel would hang (docs/protocol.md 7)."""
    status, front, child = run(told, LUSTRE)
    assert (status, front) == (0, ["assume_authority 5", "instantiate 5 None 0"])
    assert child[0] == "assume_authority 0" and child[-1] == "serves 5 False True"


def test_machines_key_waits_for_the_word(told: Told) -> None:

    def work(front: Child) -> None:
        told.say("gives its word")
        assert front.go()

    status, front, child = run(told, MACHINE, work)
    assert (status, front) == (0, ["assume_authority 5", "instantiate 5 None 0"])
    assert child[-2:] == ["gives its word", "serves 5 False True"]
    assert told.order.index("child gives its word") < told.order.index("front instantiate 5 None 0")


def test_machines_key_is_rejected_by_the_word(told: Told) -> None:
    status, front, _ = run(told, MACHINE, lambda pipes: pipes.reject(errno.EKEYEXPIRED, 70000))
    assert (status, front) == (1, ["assume_authority 5", f"reject 5 65535 {errno.EKEYEXPIRED}"])


def test_only_keyrings_with_credentials_are_linked(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that the requestor may have: there is none with the serial 0, and one is revoked."""

    def members(keyring: int, limit: int) -> list[int]:
        assert limit == 1000
        if keyring == 11:
            raise OSError(errno.EKEYREVOKED, "revoked")
        return [130, 131, 132]

    def describe(key: int) -> bytes:
        if key == 130:
            raise OSError(errno.EACCES, "not ours to look at")
        return b"keyring;7;7;3f;" + (b"_krb_7" if key == 131 else b"_pid")

    monkeypatch.setattr(keyctl, "members", members)
    monkeypatch.setattr(keyctl, "describe", describe)
    _, front, child = run(told, LUSTRE)
    assert front == [
        "assume_authority 5",
        f"link 13 {keyctl.KEY_SPEC_SESSION_KEYRING}",
        "instantiate 5 None 0",
    ]
    assert child[-1] == "serves 5 True True"


@pytest.mark.parametrize("words", [MACHINE, [*LUSTRE[:5], "0", *LUSTRE[6:]]], ids=["machine", "for another"])
def test_no_keyring_is_linked_for_others(
    told: Told, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(keyctl, "describe", lambda key: b"keyring;7;7;3f;_krb_7")
    _, front, child = run(told, words, lambda pipes: pipes.go())
    assert not [line for line in front if line.startswith("link")]
    assert child[-1] == "serves 5 False True"


def test_child_that_cannot_serve_answers(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged installation must not leave the caller waiting; a machine's key is rejected then."""
    monkeypatch.setattr(refusal, "last_resort", lambda key, call, error: told.say("last", key, error))

    def fail(front: Child) -> None:
        raise ImportError("no such module")

    status, front, child = run(told, MACHINE, fail)
    reject = f"reject 5 {answer.FAILURE_LIFE} {errno.ELIBACC}"
    assert (status, front) == (1, ["assume_authority 5", reject])
    assert child[-1] == "last 5 no such module"


@pytest.fixture
def pipes() -> Iterator[tuple[Child, int, int]]:
    """A child's ends, and the front's: where the word comes, and where to say that it is instantiated."""
    reader, writer = os.pipe()
    instantiated_reader, instantiated_writer = os.pipe()
    child = Child(writer, instantiated_reader)
    yield child, reader, instantiated_writer
    child.close()


def test_word_to_a_front_that_was_killed(pipes: tuple[Child, int, int]) -> None:
    child, reader, writer = pipes
    assert child.is_due and len(child.descriptors) == 2
    os.close(reader)
    os.close(writer)
    assert not child.go() and not child.is_due and child.descriptors == []


def test_rejection_to_a_front_that_was_killed(pipes: tuple[Child, int, int]) -> None:
    child, reader, writer = pipes
    os.close(reader)
    child.reject(errno.EIO, 2)
    assert not child.is_due and len(child.descriptors) == 1
    os.close(writer)


@pytest.mark.parametrize("said", [b"", b"X", b"R", b"R123", b"GG", b"X1234"])
def test_what_is_no_word(pipes: tuple[Child, int, int], said: bytes) -> None:
    _, reader, writer = pipes
    said_reader, said_writer = os.pipe()
    os.write(said_writer, said)
    os.close(said_writer)
    with pytest.raises(word.NoWordError):
        word.hear(said_reader)
    for number in (said_reader, reader, writer):
        os.close(number)


def test_words(pipes: tuple[Child, int, int]) -> None:
    child, reader, writer = pipes
    os.write(writer, b"1")
    assert child.go() and word.hear(reader) == (0, 0)
    os.close(reader)
    os.close(writer)


def test_native_fronts_child_is_spared_no_more_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """In C it is never ended for want of memory. Hundreds of them in Python would leave no other choice."""
    done: list[object] = []
    monkeypatch.setattr(oom, "set_score", done.append)
    monkeypatch.setattr(keyctl, "alarm", lambda seconds: None)
    monkeypatch.setattr(main, "_child", lambda key, *_: done.append(key))
    main._take_over(Call(["--instantiated", "5:0", *USER]), nobody, lambda *_: None)
    assert done == [oom.SPARED, 5]


def test_native_witness_that_logs_is_not_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has answered the key, and there are many of them when monitors are ended for want of memory."""
    done: list[object] = []
    monkeypatch.setattr(oom, "set_score", done.append)
    assert main.run(["--killed", "5:signal 9", *USER], nobody, lambda *_: done.append("logged")) == 0
    assert done == [oom.ORDINARY, "logged"]

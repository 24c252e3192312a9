"""The turn of an ordinary uid's upcall: its slot, its wait and its priority."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats.outcome import Failed
from lgss_keyring.front import arguments
from lgss_keyring.front.arguments import Call
from lgss_keyring.front.word import Child
from lgss_keyring.monitor import hand_over, limits, priority, slots, turn, upcall
from lgss_keyring.monitor.turn import Turn
from lgss_keyring.system import subordinate

from .test_identity import in_child

USER = ["create", "5", "lgssc", "x", "1:krb5:7:7::i:0:0x1:obd:0x1:0", "7", "7", "0", "0", "0"]
MACHINE = [word.replace("7:7::", "0:0:r:") for word in USER]


class Site:
    """What turns have done: to priorities, and to keys that got none."""

    def __init__(self) -> None:
        self.nice: list[int] = []
        self.refused: list[Failed] = []
        self.offered = 0


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site()

    def refuse(key: int, call: Call, front: Child, started: float, failure: Failed) -> None:
        found.refused.append(failure)

    def offer(*_: object) -> bool:
        found.offered += 1
        return False

    monkeypatch.setattr(arguments, "NOTES", str(tmp_path / "lgss"))
    monkeypatch.setattr(slots, "FOLDER", str(tmp_path / "lgss" / "slots"))
    monkeypatch.setattr(subordinate, "range_of", lambda uid: -1)
    monkeypatch.setattr(priority, "lower", found.nice.append)
    monkeypatch.setattr(priority, "lower_session", found.nice.append)
    monkeypatch.setattr(upcall, "refuse_turn", refuse)
    monkeypatch.setattr(hand_over, "offer", offer)
    yield found
    # A slot lasts as long as its process, which is that of all the tests.
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(slots.FOLDER):
                os.close(int(number))


def turn_of(words: list[str], *, brings_keyring: bool = False, age: float = 0.0) -> Turn:
    call = Call(["--timeout", "2", *words])
    call.has_keyring = brings_keyring
    return Turn(5, call, Child(-1, -1), time.monotonic() - age, 0)


def fill(name: str, count: int) -> list[int]:
    return [slots.take(name, count)[1] for _ in range(count)]


def test_machines_requests_have_8_slots_of_their_own(site: Site) -> None:
    fill("7", limits.UPCALLS_AT_WORK)
    for number in range(8):
        own = turn_of(MACHINE)
        assert own.come() and own.number == number and os.fstat(own.slot)
        assert slots.take("7-machine", number + 1) == (-1, -1)
    last = turn_of(MACHINE)
    assert not last.come()
    assert [(failure.errno, failure.kind) for failure in site.refused] == [
        (errno.ETIMEDOUT, "too-many-upcalls")
    ]
    # The machine's have their priority by root's, and wait in no queue.
    assert site.nice == [] and site.offered == 0
    assert slots.take("7-machine-waiting", 2)[0] == 1  # until that process ends


def test_a_machines_request_waits_for_a_slot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = fill("7-machine", limits.MACHINE_UPCALLS_AT_WORK)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(held.pop(3)))
    waiting = turn_of(MACHINE)
    assert waiting.come() and waiting.number == 3
    assert slots.take("7-machine-waiting", 1)[0] == 0, "it still counts as one that waits"


def test_the_first_two_upcalls_come_before_the_further_ones(site: Site) -> None:
    for _ in range(4):
        assert turn_of(USER).come()
    assert site.nice == [10, 10, 10, 10, 19, 19, 19, 19]
    # Those that wait already are asked first.
    assert site.offered == 4


def test_an_upcall_with_a_keyring_of_its_own_waits_in_its_own_process(site: Site) -> None:
    """The queue keeper must never have a session's credential in reach."""
    fill("7", limits.UPCALLS_AT_WORK)
    assert not turn_of(USER, brings_keyring=True, age=10).come()
    fill("7-waiting", limits.WAITING_PROCESSES)
    assert not turn_of(USER, brings_keyring=True).come()
    assert [failure.errno for failure in site.refused] == [errno.ETIMEDOUT, errno.ENOMEM]
    assert site.offered == 0


def test_an_upcall_that_the_keeper_takes_is_over_here(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "offer", lambda *_: True)
    own = turn_of(USER)
    assert not own.come() and own.slot == -1 and site.refused == []


def test_without_the_folder_it_is_served_without_a_slot(site: Site, tmp_path: Path) -> None:
    (tmp_path / "lgss").write_text("")
    for words in (USER, MACHINE):
        own = turn_of(words)
        assert own.come() and own.slot == -1


@pytest.mark.parametrize(
    ("uid", "comes"),
    [
        ("7", True),
        ("0", False),
        ("x", False),
        ("-7", False),
        ("", False),
        ("\u0667", False),
        ("1" * 11, False),
    ],
)
def test_only_uids_have_turns(monkeypatch: pytest.MonkeyPatch, uid: str, comes: bool) -> None:
    """Root's requests must not wait, and what is no uid must not become part of a path."""
    came: list[str] = []

    def come(self: Turn) -> bool:
        came.append(self._uid)
        return True

    monkeypatch.setattr(Turn, "come", come)
    monkeypatch.setattr(upcall, "run", lambda *_: None)
    turn.serve(5, Call([*USER[:5], uid, *USER[6:]]), Child(-1, -1))
    assert came == ([uid] if comes else [])


def test_served_only_if_the_turn_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[object] = []
    monkeypatch.setattr(upcall, "run", lambda *given: served.append(given[-1]))
    for has_come in (False, True):
        monkeypatch.setattr(Turn, "come", lambda self, has_come=has_come: has_come)
        turn.serve(5, Call(USER), Child(-1, -1))
    assert served == [-1]


needs_autogroups = pytest.mark.skipif(
    not os.path.exists("/proc/self/autogroup"), reason="a kernel without autogroups"
)


@needs_autogroups
def test_a_session_gets_its_nice_value() -> None:
    """Without it the nice value of a process counts within its session only (sched(7))."""

    def work() -> str:
        os.setsid()
        priority.lower_session(priority.QUEUE_NICE)
        return Path("/proc/self/autogroup").read_text().partition("nice")[2].strip()

    assert in_child(work) == "13"


def test_workers_alone_get_a_nice_value() -> None:
    def work() -> object:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        priority.begin_worker()
        values = [os.getpriority(os.PRIO_PROCESS, 0) - own]
        priority.lower_workers(own + 3)
        values.append(os.getpriority(os.PRIO_PROCESS, 0) - own)
        priority.begin_worker()
        return [*values, os.getpriority(os.PRIO_PROCESS, 0) - own]

    assert in_child(work) == "[0, 0, 3]"

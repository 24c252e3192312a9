"""A rule for the native front, and a lgssd that says what a test wants."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.front import lgssd_messages
from tests.support.fake_lgssd import Connection, FakeLgssd
from tests.support.native import StandIn
from tests.support.requestor import Requestor
from tests.support.site import USER_UID
from tests.support.stage import Rule

from .waiting import within

CONTEXT = b"a context of whatever bytes" * 20
GO, PULSE, YOURSELF = lgssd_messages.GO, lgssd_messages.AT_WORK, lgssd_messages.DO_IT_YOURSELF
numbers = itertools.count()


@pytest.fixture(scope="module")
def folder() -> Iterator[StandIn]:
    with StandIn() as folder:
        yield folder


@pytest.fixture
def stand_in(folder: StandIn) -> Iterator[StandIn]:
    """The folder, with nothing left of the test in the end."""
    folder.calls()
    yield folder
    assert within(5, lambda: not folder.pids())


@pytest.fixture
def user() -> Iterator[Requestor]:
    with Requestor(USER_UID) as requestor:
        yield requestor


@pytest.fixture
def root() -> Iterator[Requestor]:
    with Requestor(0) as requestor:
        yield requestor


@contextmanager
def served(
    stand_in: StandIn, script: Callable[[Connection], None], options: str = "", word_ms: int = 5000
) -> Iterator[Callable[[], str]]:
    """A rule, and a lgssd that does ``script`` for each of its upcalls; gives a function that makes the
    description of a key."""
    path = stand_in.directory / f"{next(numbers)}.sock"
    Path(f"{path}.word").write_text(f"{word_ms}\n")
    tag = f"lgss:{os.getpid()}.native{next(numbers)}:"
    with (
        FakeLgssd(path, script),
        Rule(f"{tag}*", stand_in.program, f"--lgssd {path} {options}".strip()),
    ):
        yield lambda: f"{tag}{next(numbers)}"


def failed(data: bytes) -> int:
    """The errno in a payload of failure."""
    decoded = payload.unpack(data)
    assert isinstance(decoded, payload.FailurePayload)
    return decoded.rpc_error


def called(stand_in: StandIn) -> tuple[list[str], str | None]:
    """The one call of the stand-in, waited for."""
    calls: list[tuple[list[str], str | None]] = []

    def look() -> bool:
        calls.extend(stand_in.calls())
        return bool(calls)

    assert within(5, look)
    assert len(calls) == 1
    return calls[0]


def alone(stand_in: StandIn) -> tuple[list[str], str | None]:
    """The one call of the stand-in, which must have been told not to try lgssd again."""
    words, pipe = called(stand_in)
    at = len(words) - 10
    assert words[at] == "create"
    if pipe is not None:
        assert words[at - 2] == "--instantiated"
        at -= 2
    assert words[at - 2 : at] == ["--lgssd", ""]
    return words, pipe

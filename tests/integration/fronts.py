"""Both fronts, and a lgssd that says what a test wants; a module of tests imports the fixtures that it uses.

What a front does with lgssd, and when that fails it, is the same in Python and in C.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.daemon import upcall_messages
from lgss_keyring.formats.callout import parse_request
from tests.support import native
from tests.support.fake_lgssd import Connection, FakeLgssd
from tests.support.site import Site, Upcalls

from .waiting import upcall_processes, within

CONTEXT = b"not a context, and the front does not look"
LONG_WORD_MS = 5000
"""Milliseconds; for tests in which the word comes in time however busy the machine is."""
Script = Callable[[Connection], None]

_numbers = itertools.count()


@dataclass(frozen=True)
class Front:
    """One of the fronts on its site; ``program`` is what a rule names."""

    site: Site
    program: Path

    def pids(self) -> list[int]:
        """The processes of its upcalls, the oldest first: the front, the witness, the one that serves."""
        return sorted(upcall_processes(self.site))

    def gone(self) -> bool:
        """Whether all of them end in time."""
        return within(5, lambda: not self.pids())

    def socket(self) -> Path:
        """A path for lgssd's socket, new at each call."""
        return self.site.directory / f"lgssd-{next(_numbers)}.sock"

    @contextmanager
    def upcalls(
        self,
        socket: Path | str,
        options: str = "",
        word_ms: int = LONG_WORD_MS,
        **settings: Mapping[str, Any],
    ) -> Iterator[Upcalls]:
        """A rule with ``socket`` for lgssd's."""
        Path(f"{socket}.word").write_text(f"{word_ms}\n")
        with self.site.upcalls(settings, f"--lgssd {socket} {options}", program=self.program) as upcalls:
            yield upcalls

    @contextmanager
    def served(self, script: Script, **rule: Any) -> Iterator[Upcalls]:
        """The same, with a lgssd that does ``script`` for each upcall."""
        path = self.socket()
        with FakeLgssd(path, script), self.upcalls(path, **rule) as upcalls:
            yield upcalls


@pytest.fixture(params=["python", "native"])
def front(request: pytest.FixtureRequest, site: Site) -> Iterator[Front]:
    """Each front, with nothing of it left behind the test."""
    if request.param == "native" and not native.has_compiler():
        pytest.skip("there is no C compiler here")
    stage = site.stage
    front = Front(site, stage.add_native() if request.param == "native" else stage.script)
    yield front
    assert front.gone(), front.pids()


def send_token(lgssd: Connection, path: Path, limit: int = 5, token: bytes = b"tok\0en" * 100) -> None:
    """Let the front's child write ``token`` to ``path`` in the place of init_channel."""
    request = parse_request(lgssd.upcall.arguments)
    lgssd.say(upcall_messages.pack_token(request, 0x10001, 555, limit, str(path), token))

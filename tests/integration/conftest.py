"""One realm, acceptor and stage for all tests; and a look behind each of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import requestor
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls
from tests.support.stage import CHECKOUT, Stage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0 and items:
        pytest.exit("the integration tests need root: they install request-key rules and change ids", 3)


BARE_SECONDS = 0.010
"""What a bare Python handler blocks its caller for on a real machine, for :func:`pace`."""


class Pace:
    """How much slower than a real machine this one is; 1 unless it is an emulated one.

    There (LGSS_VM in the environment) every bar is a ratio to a bare handler: measured
    in the same machine, before the first test.
    """

    factor = 1.0

    def __call__(self, seconds: float) -> float:
        """A bar of so many seconds on a real machine, on this one."""
        return seconds * self.factor

    def whole(self, seconds: int) -> int:
        """A limit of the product's own, which has a second of slack on a real machine."""
        return max(seconds, round(self(seconds) / 4))


pace = Pace()


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with Site() as site:
        if os.environ.get("LGSS_VM"):
            pace.factor = max(1.0, bare_handler(site) / BARE_SECONDS)
            requestor.patience = pace(requestor.patience)
            Site.limit = pace.whole(1)
        yield site


def bare_handler(site: Site) -> float:
    """Median seconds that a handler which does the least blocks its caller for."""
    program = site.stage.directory / "bare.py"
    Stage.write_front(CHECKOUT / "bench" / "bare.py", program)
    with site.upcalls(program=program, arguments="%o %k") as upcalls, Requestor(0) as root:
        return sorted(root.ask(upcalls.name(), "x", wait=0).blocked for _ in range(7))[3]


@pytest.fixture
def ticket(site: Site) -> int:
    """A user with a good ticket: the uid."""
    site.kinit()
    return USER_UID


@pytest.fixture
def upcalls(site: Site) -> Iterator[Upcalls]:
    with site.upcalls() as upcalls:
        yield upcalls


@pytest.fixture
def user(ticket: int) -> Iterator[Requestor]:
    with Requestor(ticket) as requestor:
        yield requestor


@pytest.fixture
def root() -> Iterator[Requestor]:
    with Requestor(0) as requestor:
        yield requestor


def upcall_processes(site: Site) -> list[int]:
    """The pids, zombies left out, of all processes that run the stage's front."""
    found = []
    folder, program = str(site.stage.directory).encode(), str(site.stage.program).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # A zombie has no command line.
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word == program or word.startswith(folder) for word in words):
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def keys_of(uid: int) -> int:
    """How many keys of ``uid`` there are, by /proc/key-users (docs/protocol.md 10)."""
    for line in Path("/proc/key-users").read_text().splitlines():
        owner, _, counts = line.partition(":")
        if int(owner) == uid:
            return int(counts.split()[1].split("/")[0])
    return 0


def within(seconds: float, condition: object) -> bool:
    """Whether ``condition()`` becomes true in that time, at this machine's pace."""
    assert callable(condition)
    end = time.monotonic() + pace(seconds)
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No process, rule or key of an upcall is there after a test that was not before."""
    if "site" not in request.fixturenames:
        yield
        return
    site: Site = request.getfixturevalue("site")
    rules = set(Path("/etc/request-key.d").glob("*"))
    yield
    assert within(5, lambda: not upcall_processes(site)), f"left: {upcall_processes(site)}"
    if "upcalls" not in request.fixturenames:
        assert set(Path("/etc/request-key.d").glob("*")) <= rules
    lines = [line for line in Path("/proc/keys").read_text().splitlines() if f" lgss:{os.getpid()}." in line]
    # A requestor's keys go with its session; what lives for ever would not.
    assert not [line for line in lines if line.split()[3] == "perm" and "i" not in line.split()[1]]

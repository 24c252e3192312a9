"""One realm, acceptor and stage for all tests; and a look behind each of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.testing.requestor import Requestor
from lgss_keyring.testing.site import USER_UID, Site, Upcalls


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0 and items:
        pytest.exit("the integration tests need root: they install request-key rules and change ids", 3)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


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
    wanted = str(site.stage.directory).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # A zombie has no command line.
                if wanted in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def keys_of(uid: int) -> int:
    """How many keys of ``uid`` there are, by /proc/key-users (PROTOCOL 10)."""
    for line in Path("/proc/key-users").read_text().splitlines():
        owner, _, counts = line.partition(":")
        if int(owner) == uid:
            return int(counts.split()[1].split("/")[0])
    return 0


def within(seconds: float, condition: object) -> bool:
    """Whether ``condition()`` becomes true in that time."""
    assert callable(condition)
    end = time.monotonic() + seconds
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
    assert not [line for line in Path("/proc/keys").read_text().splitlines() if " lgss:other" in line]

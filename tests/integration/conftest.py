"""One realm, acceptor and stage for all tests; and a look behind each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import requestor
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls
from tests.support.stage import CHECKOUT, Stage

from .credentials import keytab as keytab
from .credentials import root_cache as root_cache
from .lgssd_process import daemon as daemon
from .library import peer as peer
from .library import policy as policy
from .library import sec as sec
from .library import swept as swept
from .library import talking as talking
from .waiting import BARE_SECONDS, pace, upcall_processes, within


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0 and items:
        pytest.exit("the integration tests need root: they install request-key rules and change ids", 3)


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

"""One realm, acceptor and stage for all tests; and a look behind each of them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import requestor, runs
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls
from tests.support.stage import CHECKOUT, Stage

from .credentials import keytab as keytab
from .credentials import private as private
from .credentials import root_cache as root_cache
from .lgssd_process import daemon as daemon
from .library import peer as peer
from .library import policy as policy
from .library import sec as sec
from .library import swept as swept
from .library import talking as talking
from .renewing import life as life
from .renewing import loop as loop
from .renewing import node as node
from .renewing import steps as steps
from .waiting import BARE_SECONDS, pace, upcall_processes, within


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() != 0 and items:
        pytest.exit("the integration tests need root: they install request-key rules and change ids", 3)
    for line in runs.remove_dead():
        config.get_terminal_writer().line(line)
    runs.begin()
    # They judge what the others have seen, in whatever order those come.
    items.sort(key=lambda item: "all_faults" in getattr(item, "fixturenames", ()))


# An emulated machine, or upcalls that are measured: bars are ratios there.
SLOW = "LGSS_VM" in os.environ or "COVERAGE_PROCESS_START" in os.environ


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with Site() as site:
        if SLOW:
            pace.factor = max(1.0, statistics.median(bare_handler(site)) / BARE_SECONDS)
            requestor.patience = pace(requestor.patience)
            Site.limit = pace.whole(1)
        # The longest: what else the machine does comes in bursts.
        pace.bare = lambda: max(bare_handler(site))
        yield site
        pace.bare = None


def bare_handler(site: Site) -> list[float]:
    """Seconds that a handler which does the least blocks its caller for, seven times."""
    program = site.stage.directory / "bare.py"
    Stage.write_front(CHECKOUT / "bench" / "bare.py", program)
    with site.upcalls(program=program, arguments="%o %k") as upcalls, Requestor(0) as root:
        return [root.ask(upcalls.name(), "x", wait=0).blocked for _ in range(7)]


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


def rules_of(site: Site) -> list[str]:
    """The site's rules: others on this machine may come and go meanwhile."""
    found = []
    for path in Path("/etc/request-key.d").glob("*"):
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        if str(site.directory) in text or str(site.stage.directory) in text:
            found.append(str(path))
    return found


def keys_for_ever() -> list[str]:
    """This run's keys without an end.  A requestor's keys go with its session, at the leisure of
    the kernel's collector, and what is anywhere else would not."""
    lines = [line for line in Path("/proc/keys").read_text().splitlines() if f" lgss:{os.getpid()}." in line]
    return [line for line in lines if line.split()[3] == "perm" and "i" not in line.split()[1]]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No process, rule or key of an upcall of this run is there after a test."""
    if "site" not in request.fixturenames:
        yield
        return
    site: Site = request.getfixturevalue("site")
    yield
    assert within(5, lambda: not upcall_processes(site)), f"left: {upcall_processes(site)}"
    if "upcalls" not in request.fixturenames:
        assert not rules_of(site)
    assert within(5, lambda: not keys_for_ever()), keys_for_ever()

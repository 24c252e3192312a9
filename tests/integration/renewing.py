"""What the tests of renewals share: a node's settings, its requests, and lgssd's loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lgss_keyring.daemon.renewals import Renewals
from lgss_keyring.formats.callout import UpcallRequest, parse_request
from lgss_keyring.formats.config import Config, Krb5, Log, Upcall
from lgss_keyring.system import log
from lgss_keyring.worker.creds.renewal import Due, KeptTickets
from lgss_keyring.worker.mech import krb5
from tests.support.site import Site, machine_callout

from .credentials import issued

PRINCIPAL = "lustre_root/localhost"
MDS, OSS = "lustre_mds@localhost", "lustre_oss@localhost"
SEED = "seed"

Steps = list[tuple[str, str]]


@pytest.fixture
def node(site: Site, private: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    conf = str(site.realm.krb5_conf)
    monkeypatch.setenv("KRB5_CONFIG", conf)
    return Config(
        log=Log(file=str(tmp_path / "log"), level="debug"),
        upcall=Upcall(timeout=30),
        krb5=Krb5(config=conf, keytab=str(site.population.machine_keytab), ccache_directory=str(private)),
    )


@pytest.fixture
def life(site: Site) -> Iterator[Callable[[int, str], None]]:
    """Let the KDC bound the tickets of a principal, in seconds."""
    changed = set()

    def bound(seconds: int, principal: str = PRINCIPAL) -> None:
        changed.add(principal)
        site.realm.administer("modprinc", "-maxlife", f"{seconds} seconds", principal)

    yield bound
    for principal in changed:
        site.realm.administer("modprinc", "-maxlife", "0 seconds", principal)


@pytest.fixture
def steps() -> Steps:
    return []


def request(requestor: int = 0) -> UpcallRequest:
    """A request for the machine; of an ordinary user, it may be forged."""
    arguments = [
        "create",
        "1",
        "lgssc",
        "x",
        machine_callout(),
        str(requestor),
        str(requestor),
        "0",
        "0",
        "0",
    ]
    return parse_request(arguments)


def use(node: Config, service: str = MDS, requestor: int = 0, steps: Steps | None = None) -> None:
    """What an upcall does, up to its first token: all of its exchanges with the KDC."""

    def report(level: str, text: str) -> None:
        if steps is not None:
            steps.append((level, text))

    krb5.initiator(request(requestor), node, service, report, set()).step(None)


def tickets(node: Config, steps: Steps) -> KeptTickets:
    return KeptTickets(node.krb5, SEED, 0.0, lambda *step: steps.append(step))


def dues(node: Config, steps: Steps) -> list[Due]:
    return tickets(node, steps).due(time.time())


def exchanges(site: Site) -> tuple[int, int]:
    return issued(site, "AS_REQ"), issued(site, "TGS_REQ")


def more(site: Site, before: tuple[int, int]) -> tuple[int, int]:
    now = exchanges(site)
    return now[0] - before[0], now[1] - before[1]


def later() -> float:
    return time.monotonic() + 30


class Loop:
    """Renewals in a loop as lgssd's."""

    def __init__(self, node: Config) -> None:
        self.node = node
        written = log.Log("debug", node.log.file, journal="/-", syslog="/-", kmsg="/dev/null")
        self.renewals = Renewals(lambda: self.node, written, lambda: None)

    def until(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Turn until ``is_done()``, which must come in time."""
        end = time.monotonic() + seconds
        while not is_done():
            assert time.monotonic() < end, self.log()
            self.renewals.turn()
            time.sleep(min(self.renewals.timeout, 0.02))

    def log(self) -> str:
        path = Path(self.node.log.file)
        return path.read_text() if path.exists() else ""


@pytest.fixture
def loop(node: Config) -> Iterator[Loop]:
    loop = Loop(node)
    yield loop
    loop.renewals.close()

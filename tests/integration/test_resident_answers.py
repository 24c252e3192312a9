"""The same request gets the same answer from a resident worker and from one of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats import callout
from lgss_keyring.formats.config import Config
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.monitor import service
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.system.log import Log
from tests.support import peers
from tests.support.resident import ResidentWorker, arguments, settings_of
from tests.support.site import USER_UID, AcceptorProcess, Site, machine_callout, user_callout

WORDS = arguments(user_callout(), USER_UID)
MACHINE = arguments(machine_callout(), 0)
NO_HOST = 2 << 48 | 0x7F000009
NOWHERE = arguments(user_callout(target_nid=NO_HOST), USER_UID)
"""To a host whose name only a name server could know, which may take its time."""
Sections = Mapping[str, Mapping[str, Any]]


def by_a_worker_of_its_own(words: Sequence[str], settings: Config) -> Answer:
    request = callout.parse_request(words)
    deadline = Deadline(time.monotonic() + 30, 30, "")
    answer = service.serve(request, settings, 2**62, deadline, Log("error"))
    if answer.failure is not None:
        values = answer.failure.__dict__
        reason = values["reason"].removeprefix(f"worker of uid {request.uid} says: ")
        return Answer.of_failure(Failed(**{**values, "reason": reason}))
    return answer


def compared(words: Sequence[str], settings: Config) -> Failed | None:
    """The failure, or None, that both kinds of worker give, the resident one twice."""
    expected = by_a_worker_of_its_own(words, settings)
    with ResidentWorker(words, settings) as worker:
        for _ in range(2):
            answer = worker.ask(words)
            assert answer.failure == expected.failure
            if answer.failure is not None:
                assert answer.payload == expected.payload
            assert (answer.initiator, answer.endtime) == (expected.initiator, expected.endtime)
    return expected.failure


def kind(failure: Failed | None) -> str:
    return failure.kind if failure is not None else ""


@pytest.fixture
def alice(site: Site) -> Iterator[Path]:
    """The file with her ticket."""
    site.kinit()
    cache = site.realm.ccache_of(USER_UID)
    yield cache
    cache.unlink(missing_ok=True)


def test_success(site: Site, alice: Path) -> None:
    for words in (WORDS, MACHINE):
        assert compared(words, settings_of(site)) is None


def test_credentials_of_a_user(site: Site, alice: Path) -> None:
    settings = settings_of(site)
    os.chown(alice, 61999, 61999)
    assert kind(compared(WORDS, settings)) == "cache-unusable"
    alice.unlink()
    assert kind(compared(WORDS, settings)) == "no-ticket"
    site.realm.kinit("alice", USER_UID, USER_UID, lifetime=1)
    time.sleep(2.1)
    assert kind(compared(WORDS, settings)) == "ticket-expired"


@pytest.mark.parametrize(
    ("words", "sections", "expected"),
    [
        (MACHINE, {"krb5": {"keytab": "/nonexistent/keytab"}}, "keytab-missing"),
        (MACHINE, {"krb5": {"keytab": "/etc/passwd"}}, "keytab-unreadable"),
        (arguments(machine_callout("m"), 0), {}, "not-in-keytab"),
        (MACHINE, {"krb5": {"principal": "nobody/here@LGSS.TEST"}}, "not-in-keytab"),
        (MACHINE, {"krb5": {"principal": "@@@"}}, "config"),
        (WORDS, {"krb5": {"config": "/nonexistent/krb5.conf"}}, "krb5-conf"),
        (NOWHERE, {"names": {"reverse_dns": False}}, "no-host-name"),
        (WORDS, {"hosts": {"127.0.0.1": "elsewhere.test"}}, "service-unknown"),
        (arguments(user_callout(mechanism="sk"), USER_UID), {}, "mechanism-unsupported"),
        (WORDS, {"rpcsec_gss": {"program": 0x20000001}}, "rpc-refused"),
    ],
)
def test_what_cannot_work(
    site: Site, alice: Path, private: Path, words: list[str], sections: Sections, expected: str
) -> None:
    assert kind(compared(words, settings_of(site, sections))) == expected


def test_krb5_conf(site: Site, alice: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    conf = tmp_path / "krb5.conf"
    conf.write_text("[libdefaults\n")
    for mode in (0o644, 0o600):
        conf.chmod(mode)
        assert kind(compared(WORDS, settings_of(site, {"krb5": {"config": str(conf)}}))) == "krb5-conf"


def test_no_kdc(site: Site, alice: Path, private: Path) -> None:
    site.realm.stop_kdc()
    try:
        for words in (WORDS, MACHINE):
            assert kind(compared(words, settings_of(site))) == "kdc-unreachable"
    finally:
        site.realm.start_kdc()


@contextmanager
def nobody() -> Iterator[int]:
    with peers.unused_port() as port:
        yield port


@contextmanager
def peer(made: Callable[[], peers.Peer]) -> Iterator[int]:
    with made() as peer:
        yield peer.port


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (nobody, "acceptor-unreachable"),
        (lambda: peer(peers.Silent), "acceptor-silent"),
        (lambda: peer(peers.Closing), "acceptor-closed"),
        (lambda: peer(peers.Garbage), "malformed-reply"),
        (lambda: peer(peers.HugeRecord), "malformed-reply"),
    ],
)
def test_bad_servers(site: Site, alice: Path, port: Any, expected: str) -> None:
    with port() as number:
        settings = settings_of(site, {"rpcsec_gss": {"port": number}})
        found = compared(WORDS, settings)
    assert kind(found) == expected


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("restart-always", "start-again"),
        ("bad-verifier", "bad-verifier"),
        ("gss-failure", "refused-by-acceptor"),
        ("no-handle", "channel"),
        ("bad-token", "mechanism"),
        ("one-byte-fragments", ""),
    ],
)
def test_faulty_acceptors(site: Site, alice: Path, fault: str, expected: str) -> None:
    acceptor = AcceptorProcess(site.realm, site.population.server_keytab, site.directory, "--fault", fault)
    try:
        found = compared(WORDS, settings_of(site, {"rpcsec_gss": {"port": acceptor.port}}))
    finally:
        acceptor.close()
    assert kind(found) == expected


@pytest.mark.parametrize("fault", ["drop-once", "restart-once"])
def test_once_more(site: Site, alice: Path, fault: str) -> None:
    acceptor = AcceptorProcess(site.realm, site.population.server_keytab, site.directory, "--fault", fault)
    try:
        settings = settings_of(site, {"rpcsec_gss": {"port": acceptor.port}})
        with ResidentWorker(WORDS, settings, "warning") as worker:
            number = worker.begin(WORDS)
            found = [worker.event()[1] for _ in range(3)]
            answer = worker.answer(number) if not isinstance(found[-1], Answer) else found[-1]
    finally:
        acceptor.close()
    assert answer.failure is None
    assert [each for each in found if isinstance(each, tuple) and each[1].endswith("; trying once more")]


def test_silent_servers_are_waited_for_at_the_same_time(site: Site, alice: Path) -> None:
    bad = arguments(user_callout(mechanism="gssnull"), USER_UID)
    with peers.Silent() as silent:
        settings = settings_of(site, {"rpcsec_gss": {"port": silent.port, "reply_timeout": 2}})
        with ResidentWorker(WORDS, settings) as worker:
            started = time.monotonic()
            numbers = {worker.begin(bad) for _ in range(20)}
            while numbers:
                number, event = worker.event()
                if isinstance(event, Answer):
                    assert kind(event.failure) == "acceptor-silent"
                    numbers.remove(number)
            # Two tries of 2 s each, all at the same time.
            assert time.monotonic() - started < 20
            assert len(worker.descriptors()) == 5


def test_dropped_while_it_waits_for_its_server(site: Site, alice: Path) -> None:
    with peers.Silent() as silent:
        settings = settings_of(site, {"rpcsec_gss": {"port": silent.port, "reply_timeout": 30}})
        with ResidentWorker(WORDS, settings) as worker:
            numbers = [worker.begin(WORDS) for _ in range(5)]
            for number in numbers:
                while worker.event()[0] != number:
                    pass
            before = len(worker.descriptors())
            for number in numbers:
                worker.send(b"D", number)
            end = time.monotonic() + 10
            while len(worker.descriptors()) > 5 and time.monotonic() < end:
                time.sleep(0.01)
            assert before > len(worker.descriptors()) == 5


def test_errors_do_not_stick(site: Site, alice: Path, private: Path) -> None:
    """Failures of several kinds, and successes between them, in one worker."""
    elsewhere = arguments(user_callout(target_nid=NO_HOST), USER_UID)
    others = {
        realm: arguments(user_callout(target_nid=NO_HOST + at), USER_UID)
        for at, realm in enumerate(("ONE", "TWO"), 1)
    }
    hosts = {"127.0.0.1": "localhost", "127.0.0.10": "server.one", "127.0.0.11": "server.two"}
    settings = settings_of(site, {"hosts": hosts, "names": {"reverse_dns": False}})
    with ResidentWorker(WORDS, settings) as worker:
        for _ in range(3):
            assert worker.ask(WORDS).failure is None
            assert kind(worker.ask(elsewhere).failure) == "no-host-name"
            for realm, words in others.items():
                failure = worker.ask(words).failure
                assert failure is not None and failure.kind == "service-unknown"
                # libkrb5's own words.
                assert f"Server krbtgt/{realm}@" in failure.reason
        alice.unlink()
        for words in others.values():
            assert kind(worker.ask(words).failure) == "no-ticket"


def test_a_ticket_is_refused_for_one_request_only(
    site: Site, private: Path, keytab: Callable[..., Path]
) -> None:
    """A user's forged request may have made a wrong server refuse it, and without a KDC there is no other."""
    good = arguments(machine_callout(lustre_service=2), 0)
    forged = arguments(machine_callout(lustre_service=2, target_nid=2 << 48 | 0x7F000002), 0)
    listen = ("--listen", f"127.0.0.2:{site.acceptor.port}")
    wrong = AcceptorProcess(site.realm, keytab("lustre_mds/localhost"), site.directory, *listen)
    try:
        settings = settings_of(site, {"hosts": {"127.0.0.2": "localhost"}})
        with ResidentWorker(good, settings) as worker:
            assert worker.ask(good).failure is None
            site.realm.stop_kdc()
            for _ in range(2):
                assert kind(worker.ask(forged).failure) == "kdc-unreachable"
                assert worker.ask(good).failure is None
    finally:
        site.realm.start_kdc()
        wrong.close()

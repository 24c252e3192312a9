"""Dead contexts in a user keyring of the running kernel, and lgssd's looks at them."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import pytest

from lgss_keyring.daemon import limits
from lgss_keyring.formats import config, job_messages, payload
from lgss_keyring.formats.callout import format_callout
from lgss_keyring.formats.job_messages import DeadKeys
from lgss_keyring.system import keyrings, keys
from lgss_keyring.system.libkeyutils import BYTES, SERIAL, SIZE, call
from lgss_keyring.worker import limits as worker_limits
from lgss_keyring.worker.dead_keys import DeadKeysCollector
from tests.support.resident import ResidentWorker, arguments
from tests.support.site import LOOPBACK_NID

from .fake_lgssd import FakeLgssd, Worker
from .library import in_user
from .waiting import within

UID = 61831
VALID = b"a payload that is none of ours"
FAILED = payload.FailurePayload(errno.ENOKEY, 0).pack()


def add(name: str, data: bytes = VALID, keyring: int = keyrings.USER, timeout: int = 0) -> int:
    """A new key of type ``user``."""
    types = (BYTES, BYTES, BYTES, SIZE, SERIAL)
    key = call("add a key", "add_key", types, b"user", name.encode(), data, len(data), keyring)
    if timeout:
        keys.set_timeout(key, timeout)
    return key


def revoke(key: int) -> int:
    """The key, revoked."""
    call("revoke a key", "keyctl_revoke", (SERIAL,), key)
    return key


def clear() -> None:
    """Leave nothing in this user's keyring."""
    call("clear", "keyctl_clear", (SERIAL,), keyrings.USER)


def as_user(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, with an empty user keyring, which is linked in the session's while keys
    are made."""

    def run() -> Any:
        clear()
        keyrings.link(keyrings.USER, keyrings.SESSION)
        try:
            return work()
        finally:
            clear()

    return in_user(UID, run)


def collect(collector: DeadKeysCollector) -> tuple[int, ...]:
    """What it finds, as a process finds it in whose session there is no user keyring."""
    keyrings.unlink(keyrings.serial_of(keyrings.USER), keyrings.SESSION)
    found = collector.collect()
    assert keyrings.members(keyrings.SESSION) == []
    keyrings.link(keyrings.USER, keyrings.SESSION)
    return found.revoked, found.expired, found.orphans, found.waiting


def test_a_revoked_key_is_taken_out_and_its_name_is_free() -> None:
    def work() -> Any:
        revoked = [revoke(add(f"lgss:{number}")) for number in range(3)]
        others = [add("lgss:valid", timeout=100), add("lgss:lasting"), revoke(add("other"))]
        counts = collect(DeadKeysCollector(UID))
        left = keyrings.members(keyrings.USER)
        return counts, sorted(left) == sorted(others), set(left) & set(revoked) == set()

    assert as_user(work) == [[3, 0, 0, 0], True, True]


def test_an_expired_key_is_counted_and_left_to_the_kernel() -> None:
    def work() -> Any:
        expired = add("lgss:1", timeout=1)
        time.sleep(1.2)
        return collect(DeadKeysCollector(UID)), keyrings.members(keyrings.USER) == [expired]

    assert as_user(work) == [[0, 1, 0, 0], True]


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_successor_of_that_name_is_never_taken_out(how: str) -> None:
    """What keyctl_unlink(2) would do, as it goes by name."""

    def work() -> Any:
        dead = add("lgss:1", timeout=1 if how == "expired" else 0)
        if how == "revoked":
            revoke(dead)
        else:
            time.sleep(1.2)
        successor = add("lgss:1", keyring=keyrings.SESSION, timeout=100)
        keyrings.link(successor, keyrings.USER)
        keyrings.unlink(successor, keyrings.SESSION)
        counts = collect(DeadKeysCollector(UID))
        return counts, keyrings.members(keyrings.USER) == [successor]

    assert as_user(work) == [[0, 0, 0, 0], True]


def test_an_orphan_is_taken_out_when_it_has_been_one_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_limits, "ORPHAN_SECONDS", 0.3)

    def work() -> Any:
        collector = DeadKeysCollector(UID)
        orphan, later = add("lgss:1", FAILED), add("lgss:2", FAILED)
        add("lgss:3", FAILED, timeout=100)
        counts = [collect(collector)]
        keys.set_timeout(later, 100)  # its process has not been killed
        time.sleep(0.4)
        counts.append(collect(collector))
        is_gone = within(5, lambda: orphan not in keyrings.members(keyrings.USER))  # by the collector
        return counts, is_gone, later in keyrings.members(keyrings.USER)

    assert as_user(work) == [[[0, 0, 0, 2], [0, 0, 1, 0]], True, True]


def test_only_the_user_keyring_itself_is_looked_at() -> None:
    def work() -> Any:
        nested = keyrings.make("lgss:ring", keyrings.USER)
        inner = revoke(add("lgss:1", keyring=nested))
        outer = revoke(add("lgss:2", keyring=keyrings.SESSION))
        keyrings.unlink(keyrings.serial_of(keyrings.USER), keyrings.SESSION)
        found = DeadKeysCollector(UID).collect()
        keyrings.link(keyrings.USER, keyrings.SESSION)
        return found.revoked, inner in keyrings.members(nested), outer in keyrings.members(keyrings.SESSION)

    assert as_user(work) == [0, True, True]


def test_a_look_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_limits, "DEAD_KEYS_SECONDS", 0.0)

    def work() -> Any:
        for number in range(20):
            revoke(add(f"lgss:{number}"))
        return collect(DeadKeysCollector(UID))[0] <= 1

    assert as_user(work) is True


def test_a_resident_worker_takes_out_its_users() -> None:
    text = format_callout(
        mechanism="gssnull", uid=UID, gid=UID, lustre_service=1, target_nid=LOOPBACK_NID, obd_name="x"
    )
    with ResidentWorker(arguments(text, UID), config.Config()) as worker:

        def work() -> None:
            keyrings.link(keyrings.USER, keyrings.SESSION)
            revoke(add("lgss:1"))
            add("lgss:2", timeout=100)

        in_user(UID, work)
        for revoked in (1, 0):
            worker.send(job_messages.COLLECT, 7)
            number, message = job_messages.split(worker.receive())
            assert (number, DeadKeys.unpack(message)) == (7, DeadKeys(revoked, 0, 0, 0))
        in_user(UID, clear)


# lgssd's side.


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come soon."""
    monkeypatch.setattr(limits, "REAP_IDLE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "REAP_ANSWER_SECONDS", 0.5)


def _answers(*answers: bytes) -> Callable[[Worker], None]:
    """A worker that answers each job, and looks by ``answers``."""
    left = list(answers)

    def work(worker: Worker) -> None:
        while True:
            number, message = worker.next()
            if message[:1] == b"J":
                worker.established(number)
            elif message == job_messages.COLLECT and left:
                worker.send(number, left.pop(0))

    return work


def test_lgssd_asks_an_idle_worker_once_in_a_minute(soon: None) -> None:
    with FakeLgssd(_answers(DeadKeys(2, 1, 0, 0).pack(), b"none is due")) as lgssd:
        peer = lgssd.connect(UID)
        first = peer.served_by(UID)
        assert within(5, lambda: "reaped" in lgssd.log())
        text = "2 revoked and 0 orphaned contexts were taken out of the user keyring"
        assert f"worker of uid {UID} says: {text}" in lgssd.log()
        time.sleep(0.6)
        assert peer.served_by(UID) == first


def test_lgssd_asks_again_soon_where_there_may_be_an_orphan(
    soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REAP_ORPHAN_SECONDS", 0.1)
    with FakeLgssd(_answers(DeadKeys(0, 0, 0, 1).pack(), DeadKeys(0, 0, 1, 0).pack())) as lgssd:
        lgssd.connect(UID).served_by(UID)
        assert within(5, lambda: "0 revoked and 1 orphaned contexts" in lgssd.log())


@pytest.mark.parametrize("answer", [b"X", b"C", DeadKeys(1, 1, 1, 1).pack() + b"x"])
def test_a_worker_that_answers_nonsense_is_ended(soon: None, answer: bytes) -> None:
    with FakeLgssd(_answers(answer)) as lgssd:
        lgssd.connect(UID).served_by(UID)
        assert within(5, lambda: not lgssd.workers())
        assert "it sent" not in lgssd.log() and "reaped" not in lgssd.log()


def test_a_worker_that_does_not_answer_keeps_no_look_alive(
    soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 1.5)
    with FakeLgssd(_answers()) as lgssd:
        lgssd.connect(UID).served_by(UID)
        assert within(10, lambda: not lgssd.workers())

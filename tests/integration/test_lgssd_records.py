"""What lgssd does for records of the pipe, with workers whose work is a test's."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon import limits
from lgss_keyring.formats.errors import Kind
from lgss_keyring.formats.outcome import Failed

from .fake_lgssd import FakeLgssd, Worker, serve_all
from .waiting import pace, within

ALICE, BOB, CAROL = 61811, 61812, 61813


def test_records_and_upcalls_of_a_user_have_one_worker() -> None:
    with FakeLgssd(serve_all) as lgssd:
        peer = lgssd.connect(ALICE)
        pids = {peer.served_by(ALICE), lgssd.connect().served_by(ALICE), lgssd.ask(ALICE).served_by()}
        assert len(pids) == 1
        assert lgssd.connect(BOB).served_by(BOB) not in pids
        assert f"established; the worker of uid {ALICE} claims to be alice@TEST" in lgssd.log()


@pytest.mark.parametrize("seq", [0, 1, 2**31, 2**32 - 1])
def test_any_number_is_answered_by_itself(seq: int) -> None:
    with FakeLgssd(serve_all) as lgssd:
        peer = lgssd.connect(ALICE)
        peer.ask(ALICE, seq)
        assert peer.hear()[0] == seq


def test_the_job_is_that_of_a_key_of_type_user() -> None:
    def tell(worker: Worker) -> None:
        while True:
            job = worker.job()
            worker.failed(job.number, Failed(errno.EPERM, 0, Kind.REQUEST, " ".join(job.arguments)))

    with FakeLgssd(tell) as lgssd:
        peer = lgssd.connect(ALICE)
        peer.ask(ALICE, 5, gid=7, service=2, nid=0x20000C0A80A05, obd_name="fs-OST0001-osc")
        assert peer.hear() == (5, errno.EPERM)
        callout = f"0:krb5:{ALICE}:7::-:2:0x20000c0a80a05:fs-OST0001-osc:0x0:0"
        assert f"create 5 user lgss:pipe {callout} {ALICE} {ALICE} 0 0 0" in lgssd.log()
        assert f"uid {ALICE}: worker of uid {ALICE} says: create" in lgssd.log()
        root = lgssd.connect()
        root.ask(0, 6, obd_name="MGC10.0.0.1@tcp")
        assert root.hear() == (6, errno.EPERM)
        assert ": uid 0: create 6 user lgss:pipe 0:krb5:0:0:r:-:1:" in lgssd.log()


@pytest.mark.parametrize("name", ["fs:0x0:5", "a:b", ":"])
def test_an_obd_name_brings_in_no_fields(name: str) -> None:
    with FakeLgssd(serve_all) as lgssd:
        peer = lgssd.connect(ALICE)
        peer.ask(ALICE, obd_name=name)
        assert peer.hear() == (1, errno.EINVAL)
        assert not lgssd.workers()
        peer.ask(ALICE, obd_name="MGC2001:db8::1@tcp")
        assert peer.hear()[1] < 0


def test_a_user_gets_no_context_of_somebody_else() -> None:
    with FakeLgssd(serve_all) as lgssd:
        peer = lgssd.connect(ALICE)
        for uid in (BOB, 0):
            peer.ask(uid)
            assert peer.hear() == (1, errno.EACCES)
        assert not lgssd.workers()


def _block_on_first(worker: Worker) -> None:
    """The obd name tells a job to block."""
    while True:
        job = worker.job()
        if ":block" in job.arguments[4]:
            worker.page.step("asking a KDC")
            time.sleep(60)
        worker.established(job.number)


def test_four_workers_of_a_user_and_nobody_else_waits() -> None:
    with FakeLgssd(_block_on_first) as lgssd:
        peers = [lgssd.connect(ALICE) for _ in range(8)]
        for peer in peers:
            for seq in range(16):
                peer.ask(ALICE, seq, obd_name="block")
        assert within(5, lambda: len(lgssd.workers()) == 4)
        started = time.monotonic()
        lgssd.connect(BOB).served_by(BOB)
        lgssd.connect().served_by(0)
        assert time.monotonic() - started < pace(1)
        time.sleep(0.2)
        assert len(lgssd.workers()) == 6


def test_blocked_users_keep_out_neither_newcomers_nor_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESIDENT_WORKERS", 6)
    monkeypatch.setattr(limits, "WORKERS_FOR_NEWCOMERS", 2)
    with FakeLgssd(_block_on_first) as lgssd:
        peers = [lgssd.connect(uid) for uid in (ALICE, BOB, CAROL)]
        for uid, peer in zip((ALICE, BOB, CAROL), peers, strict=True):
            before = len(lgssd.workers())
            for seq in range(8):
                peer.ask(uid, seq, obd_name="block")
            assert within(5, lambda: len(lgssd.workers()) >= (4 if uid == ALICE else before + 1))  # noqa: B023
        time.sleep(0.3)
        assert len(lgssd.workers()) == 6
        assert lgssd.connect().served_by(0)


def test_a_burst_waits_in_its_own_socket_and_all_of_it_is_served() -> None:
    def slowly(worker: Worker) -> None:
        while True:
            job = worker.job()
            time.sleep(0.005)
            worker.established(job.number)

    with FakeLgssd(slowly) as lgssd:
        peers = [lgssd.connect(ALICE) for _ in range(10)]
        for seq in range(10):
            for peer in peers:
                peer.ask(ALICE, seq)
        for peer in peers:
            assert sorted(peer.hear()[0] for _ in range(10)) == list(range(10))


def _hold(worker: Worker) -> None:
    """Answer the job whose obd name says so, and no other."""
    while True:
        number, message = worker.next()
        if b"go-on" in message:
            worker.established(number)


def watched(pid: int) -> int:
    """How many descriptors a process waits for with epoll(7)."""
    entries = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if "eventpoll" in os.readlink(entry)]
    return sum(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().count("tfd:") for entry in entries)


def test_a_peer_that_is_gone_frees_its_work() -> None:
    """Also one that waits, to which nobody looks."""
    with FakeLgssd(_hold) as lgssd:
        greedy = [lgssd.connect(ALICE) for _ in range(2)]
        for peer in greedy:
            for seq in range(30):
                peer.ask(ALICE, seq)
        # Three listeners, a worker, and neither of the two peers.
        assert within(10, lambda: len(lgssd.workers()) == 1 and watched(lgssd.pid) == 4)
        waiting = lgssd.connect(ALICE)
        waiting.ask(ALICE, obd_name="go-on")
        waiting.connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            waiting.hear()
        for peer in greedy:
            peer.close()
        waiting.connection.settimeout(10)
        assert waiting.hear()[1] < 0


def test_a_deadline_ends_the_blocked_worker() -> None:
    with FakeLgssd(_block_on_first, {"upcall": {"timeout": 2}}) as lgssd:
        peer = lgssd.connect(ALICE)
        peer.ask(ALICE, 3, obd_name="block")
        assert peer.hear() == (3, errno.ETIMEDOUT)
        assert f"no answer within 2 s; last step: worker of uid {ALICE} says: asking a KDC" in lgssd.log()
        assert peer.served_by(ALICE)
        assert within(5, lambda: len(lgssd.workers()) == 1)


def _always_die(worker: Worker) -> None:
    worker.job()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_record_that_kills_its_workers_fails() -> None:
    with FakeLgssd(_always_die) as lgssd:
        peer = lgssd.connect(ALICE)
        peer.ask(ALICE)
        assert peer.hear() == (1, errno.EIO)
        assert "6 workers have ended before they answered" in lgssd.log()

"""What lgssd does for upcalls, with workers whose work is a test's."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon import limits, settings
from lgss_keyring.formats import payload, worker_messages
from lgss_keyring.formats.errors import Kind
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.front import lgssd_messages
from tests.support.requestor import Requestor

from .fake_lgssd import Child, FakeLgssd, Worker, children, serve_all
from .waiting import within

ALICE, BOB = 61801, 61802


def test_an_upcall_has_its_word_its_context_and_its_line() -> None:
    with FakeLgssd(serve_all) as lgssd:
        child = lgssd.ask(ALICE)
        assert child.hear() == lgssd_messages.GO
        answer = lgssd_messages.Answer(child.hear())
        assert (answer.errno, isinstance(payload.unpack(answer.payload), payload.ContextPayload)) == (0, True)
        assert 3590 < answer.life <= 3600
        assert "handed to the kernel" not in lgssd.log()  # not before the child says so
        child.connection.send(lgssd_messages.pack_done(0))
        assert child.hear() == b""
        assert "key 4711: a context for " in lgssd.log()
        assert f"LGSS_UID={ALICE}" in lgssd.log()


def test_a_context_that_the_key_does_not_take_is_told() -> None:
    with FakeLgssd(serve_all) as lgssd:
        child = lgssd.ask(ALICE)
        assert child.hear() == lgssd_messages.GO
        child.hear()
        child.connection.send(lgssd_messages.pack_done(errno.EKEYREVOKED))
        assert child.hear() == b""
        assert "is lost: cannot update key 4711" in lgssd.log()


def test_a_user_keeps_the_worker_and_another_user_has_another() -> None:
    with FakeLgssd(serve_all) as lgssd:
        pids = [lgssd.ask(ALICE).served_by() for _ in range(5)]
        assert len(set(pids)) == 1
        assert lgssd.ask(BOB).served_by() not in pids
        assert lgssd.ask(ALICE).served_by() == pids[0]


def _once_then_another_job(worker: Worker) -> None:
    """Ends at any message between two jobs."""
    while True:
        number, message = worker.next()
        assert message[:1] == b"J"
        worker.ready(number)
        worker.established(number)


def test_a_job_with_its_outcome_costs_its_worker_no_more_messages() -> None:
    with FakeLgssd(_once_then_another_job) as lgssd:
        assert len({lgssd.ask(ALICE).served_by() for _ in range(5)}) == 1


def _fail(worker: Worker) -> None:
    failure = Failed(errno.EKEYEXPIRED, 0xD0000, Kind.REFUSED_BY_ACCEPTOR, "it says no", "ask it why")
    while True:
        worker.failed(worker.job().number, failure)


def test_a_failure_before_the_word_is_the_word() -> None:
    with FakeLgssd(_fail) as lgssd:
        child = lgssd.ask(ALICE)
        answer = lgssd_messages.Answer(child.hear())
        assert (answer.errno, answer.life) == (errno.EKEYEXPIRED, 2)
        assert payload.unpack(answer.payload) == payload.FailurePayload(errno.EKEYEXPIRED, 0xD0000)
        child.connection.send(lgssd_messages.pack_done(0))
        assert child.hear() == b""
        assert f"worker of uid {ALICE} says: it says no; ask it why" in lgssd.log()


def test_requests_of_a_killed_worker_are_begun_anew() -> None:
    with FakeLgssd(_slowly) as lgssd:
        with children(5, lambda: lgssd.ask(ALICE)) as waiting:
            assert within(5, lambda: len(lgssd.workers()) == 1)
            (first,) = lgssd.workers()
            os.kill(first, signal.SIGKILL)
            assert first not in {child.served_by() for child in waiting}


def _slowly(worker: Worker) -> None:
    while True:
        job = worker.job()
        worker.ready(job.number)
        time.sleep(0.2)
        worker.established(job.number)


def _always_die(worker: Worker) -> None:
    worker.ready(worker.job().number)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_request_that_kills_its_workers_fails() -> None:
    with FakeLgssd(_always_die) as lgssd:
        answer = lgssd.ask(ALICE).answer()
        assert answer.errno == errno.EIO
        assert "6 workers have ended before they answered" in lgssd.log()
        assert within(5, lambda: not lgssd.workers())


def _block_on_first(worker: Worker) -> None:
    """The obd name tells a job to block."""
    while True:
        job = worker.job()
        if ":block-" in job.arguments[4]:
            worker.page.step("asking a KDC")
            time.sleep(60)
        worker.ready(job.number)
        worker.established(job.number)


def test_a_blocked_worker_keeps_nobody_else_waiting() -> None:
    with FakeLgssd(_block_on_first) as lgssd:
        blocked = lgssd.ask(ALICE, obd_name="block-1")
        with children(10, lambda: lgssd.ask(ALICE)) as waiting:
            started = time.monotonic()
            pids = {child.served_by() for child in waiting}
            assert time.monotonic() - started < 2
        assert len(pids) == 1
        assert len(lgssd.workers()) == 2
        blocked.close()


def test_a_user_has_four_workers_at_most_and_others_are_served() -> None:
    with FakeLgssd(_block_on_first) as lgssd, children(8, lambda: lgssd.ask(ALICE, obd_name="block-1")):
        assert within(5, lambda: len(lgssd.workers()) == 4)
        started = time.monotonic()
        lgssd.ask(BOB).served_by()
        assert time.monotonic() - started < 1
        assert len(lgssd.workers()) == 5


def test_a_deadline_within_a_blocking_call_ends_the_worker_and_others_begin_anew() -> None:
    with FakeLgssd(_block_on_first, {"upcall": {"timeout": 2}}) as lgssd:
        blocked = lgssd.ask(ALICE, obd_name="block-1")
        assert blocked.answer().errno == errno.ETIMEDOUT
        assert f"no answer within 2 s; last step: worker of uid {ALICE} says: asking a KDC" in lgssd.log()
        assert lgssd.ask(ALICE).served_by()
        assert within(5, lambda: len(lgssd.workers()) == 1)


def test_what_waits_too_long_for_a_worker_says_so() -> None:
    with (
        FakeLgssd(_block_on_first, {"upcall": {"timeout": 3}}) as lgssd,
        children(3, lambda: lgssd.ask(ALICE, obd_name="block-1", timeout=20)),
    ):
        time.sleep(0.5)
        with children(2, lambda: lgssd.ask(ALICE, obd_name="block-1")):
            with children(8, lambda: lgssd.ask(ALICE)) as waiting:
                assert {child.answer().errno for child in waiting} <= {0, errno.ETIMEDOUT}


def _token(worker: Worker) -> None:
    """Send a token, and end with what comes back."""
    while True:
        job = worker.job()
        worker.ready(job.number)
        worker.send(job.number, b"Tthe token")
        number, message = worker.next()
        reply = worker_messages.unpack_reply(message)
        if isinstance(reply, Failed):
            worker.failed(number, reply)
        else:
            worker.failed(number, Failed(errno.EPROTO, 0, "mechanism", f"{reply[0]} {reply[1].hex()}"))


@pytest.fixture
def parameters(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lustre")
    (folder / "sptlrpc" / "gss").mkdir(parents=True)
    (folder / "sptlrpc" / "gss" / "init_channel").write_text("")
    return str(folder)


def test_a_token_goes_to_the_child_with_this_requests_numbers(parameters: str) -> None:
    with FakeLgssd(_token, {"lustre": {"parameters": parameters}}) as lgssd:
        child = lgssd.ask(ALICE, key_type="lgssc", secid=-7, obd_name="fs-MDT0000-mdc-1")
        assert child.hear() == lgssd_messages.GO
        token = lgssd_messages.Token(child.hear())
        assert (token.uid, token.gid, token.obd_name, token.token) == (
            ALICE,
            ALICE + 1,
            b"fs-MDT0000-mdc-1",
            b"the token",
        )
        assert token.path == f"{parameters}/sptlrpc/gss/init_channel".encode()
        assert (token.secid & 0xFFFFFFFF, token.service) == (-7 & 0xFFFFFFFF, 1)
        child.connection.send(lgssd_messages.pack_reply(-110, 0, b"xy"))
        assert child.answer().errno == errno.EPROTO
        assert "-110 7879" in lgssd.log()


def test_a_write_that_fails_is_explained(parameters: str) -> None:
    with FakeLgssd(_token, {"lustre": {"parameters": parameters}}) as lgssd:
        child = lgssd.ask(ALICE, key_type="lgssc")
        assert child.hear() == lgssd_messages.GO
        child.hear()
        child.connection.send(lgssd_messages.pack_reply(0, errno.EINVAL, b""))
        assert child.answer().errno == errno.EINVAL
        assert "Lustre has no such target" in lgssd.log()


def _say(*messages: bytes):  # type: ignore[no-untyped-def]
    def work(worker: Worker) -> None:
        number = worker.job().number
        for message in messages:
            worker.send(number, message)
        while True:
            worker.next()

    return work


@pytest.mark.parametrize(
    "messages",
    [
        [b"Ttoken before the credential"],
        [b"C", b"C"],
        [b"C", b"Ttoken for a key of type user"],
        [b"X"],
        [b""],
        [b"G\1\0\0\0"],
        [b"E" + bytes(40)],
        [b"F" + bytes(8)],
        [b"C", b"T" + bytes(16385)],
    ],
)
def test_a_worker_that_breaks_the_protocol_is_ended(messages: list[bytes]) -> None:
    with FakeLgssd(_say(*messages)) as lgssd:
        child = lgssd.ask(ALICE)
        assert child.answer().errno == errno.EIO
        assert "it sent what no worker of ours sends" in lgssd.log()
        assert within(5, lambda: not lgssd.workers())


def _answer_for_others(worker: Worker) -> None:
    job = worker.job()
    for number in range(1, 50):
        if number != job.number:
            worker.established(number)
    worker.ready(job.number)
    worker.established(job.number)
    serve_all(worker)


def test_a_worker_cannot_answer_another_users_request() -> None:
    with FakeLgssd(_answer_for_others) as lgssd:
        first, second = lgssd.ask(ALICE), lgssd.ask(BOB)
        assert first.served_by() != second.served_by()


@pytest.mark.parametrize("message", [b"x", b"U", b"K\0\0\0\0", b"R" + bytes(12), b"U\1" + bytes(9000)])
def test_a_malformed_request_ends_the_connection(message: bytes) -> None:
    with FakeLgssd(serve_all) as lgssd:
        assert Child(lgssd.path, message).hear() == b""
        assert "it is of another version" in lgssd.log()
        assert lgssd.ask(ALICE).served_by()


def test_what_is_not_for_a_shared_worker_goes_back() -> None:
    with FakeLgssd(serve_all) as lgssd:
        assert lgssd.ask(ALICE, config="/etc/other.toml").hear() == lgssd_messages.DO_IT_YOURSELF
        assert lgssd.ask(ALICE, target_nid=4 << 48 | 5).hear() != lgssd_messages.DO_IT_YOURSELF
        assert lgssd.ask(ALICE, requestor=0, flags="r").hear() == lgssd_messages.DO_IT_YOURSELF
        assert lgssd.ask(ALICE, pid=os.getpid()).hear() == lgssd_messages.GO  # a service of root's
        with Requestor(BOB) as bob:
            bob.run(["true"])  # it has become that user
            assert lgssd.ask(ALICE, pid=bob.pid).hear() == lgssd_messages.DO_IT_YOURSELF
        other = subprocess.Popen(["unshare", "-m", "sleep", "60"])
        try:
            assert within(5, lambda: _namespace(other.pid) != _namespace(os.getpid()))
            assert lgssd.ask(ALICE, pid=other.pid).hear() == lgssd_messages.DO_IT_YOURSELF
        finally:
            other.kill()
            other.wait()
        assert lgssd.ask(ALICE, pid=other.pid).hear() == lgssd_messages.DO_IT_YOURSELF  # it has ended


def _namespace(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def test_a_user_gets_no_context_of_somebody_else() -> None:
    with FakeLgssd(serve_all) as lgssd:
        assert lgssd.ask(BOB, requestor=ALICE).answer().errno == errno.EACCES
        assert lgssd.ask(0, requestor=ALICE, flags="r").answer().errno == errno.EACCES
        assert f"uid {ALICE} may not ask for a context of uid {BOB}" in lgssd.log()
        assert not lgssd.workers()


def test_workers_are_replaced_when_what_they_have_loaded_changes() -> None:
    with FakeLgssd(serve_all) as lgssd:
        first = lgssd.ask(ALICE).served_by()
        lgssd.krb5_conf.write_text("[libdefaults]\ndns_lookup_kdc = false\n")
        second = lgssd.ask(ALICE).served_by()
        lgssd.write_config({**lgssd.sections, "names": {"timeout": 3}})
        third = lgssd.ask(ALICE).served_by()
        assert len({first, second, third}) == 3
        assert within(5, lambda: len(lgssd.workers()) == 1)
        lgssd.config.write_text("[nonsense]\n")
        assert lgssd.ask(ALICE).hear() == lgssd_messages.DO_IT_YOURSELF


def test_a_stopped_worker_is_taken_for_blocked() -> None:
    with FakeLgssd(serve_all, {"upcall": {"timeout": 3}}) as lgssd:
        first = lgssd.ask(ALICE).served_by()
        os.kill(first, signal.SIGSTOP)
        answers = []
        with children(3, lambda: lgssd.ask(ALICE)) as waiting:
            answers = [child.answer().errno for child in waiting]
        os.kill(first, signal.SIGCONT)
        assert set(answers) <= {0, errno.ETIMEDOUT}


def test_a_child_that_is_gone_frees_its_worker() -> None:
    with FakeLgssd(_say()) as lgssd:
        with children(5, lambda: lgssd.ask(ALICE)):
            assert within(5, lambda: len(lgssd.workers()) >= 1)
        assert within(5, lambda: "has ended" not in lgssd.log())
        assert lgssd.ask(BOB).connection.fileno() >= 0


def test_fronts_are_told_how_long_to_wait_for_the_word() -> None:
    with FakeLgssd(serve_all, {"upcall": {"word_ms": 70}}) as lgssd:
        said = Path(f"{lgssd.path}.word")
        assert within(5, lambda: said.exists() and said.read_text() == "70")
        lgssd.write_config({**lgssd.sections, "upcall": {"word_ms": 90}})
        lgssd.ask(ALICE).served_by()
        assert said.read_text() == "90"


def test_a_worker_that_always_has_work_is_replaced_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_IN_ALL", 5)
    with FakeLgssd(serve_all) as lgssd, children(20, lambda: lgssd.ask(ALICE)) as waiting:
        pids = [child.served_by() for child in waiting]
        assert len(set(pids)) >= 4
        assert all(pids.count(pid) <= 5 for pid in pids)


def test_workers_are_replaced_when_users_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker has its user's primary group from its beginning."""
    passwd = tmp_path / "passwd"
    passwd.write_text("alice:x:61801:100::/:/bin/sh\n")
    monkeypatch.setattr(settings, "USERS", (str(passwd),))
    with FakeLgssd(serve_all) as lgssd:
        first = lgssd.ask(ALICE).served_by()
        assert lgssd.ask(ALICE).served_by() == first
        passwd.write_text("alice:x:61801:1000::/:/bin/sh\n")
        assert lgssd.ask(ALICE).served_by() != first

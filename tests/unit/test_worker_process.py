"""The monitor's end of a worker: its answer, its limits, and a hostile one."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgss_keyring.formats import payload, worker_messages
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.monitor import worker_process
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.monitor.worker_process import WorkerProcess
from lgss_keyring.worker import monitor_connection
from lgss_keyring.worker.monitor_connection import MonitorConnection
from tests.support import peers

from .workers import ESTABLISHED, FAILED, Fake, hostile, ignore, wait, within


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a namespace")
def test_hidden_worker_is_alone_and_takes_all_it_started_along() -> None:
    """And the process that made it can start threads as before."""
    held, kept = os.pipe()

    def work(line: MonitorConnection) -> Established:
        if os.fork() == 0:
            time.sleep(600)
        os.close(kept)
        alone = [name for name in ("1", str(os.getpid())) if os.getpid() != 1]
        assert not alone and os.getppid() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(parent, 0)
        return ESTABLISHED

    parent = os.getpid()
    worker = WorkerProcess(work, hidden=True)
    os.close(kept)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    answer = wait(worker)
    assert answer.failure is None, answer.failure
    # What it has started held this open.
    with os.fdopen(held, "rb") as end:
        assert end.read() == b""


def test_shortage_is_told_as_such() -> None:
    for error, number in (
        (BlockingIOError(errno.EAGAIN, "fork"), errno.ENOMEM),
        (OSError(errno.EDQUOT, "key"), errno.EDQUOT),
        (RuntimeError("can't start new thread"), errno.ENOMEM),
        (MemoryError(), errno.ENOMEM),
    ):
        failed = Failed.by(error)
        assert (failed.kind, failed.errno) == ("resources", number)
        # python-daemon wraps what fork(2) said.
        wrapped = Exception("cannot detach")
        wrapped.__cause__ = error
        assert Failed.by(wrapped).kind == "resources"
    assert Failed.by(RuntimeError("other")).kind == "internal"


def test_worker_answers_and_is_waited_for() -> None:
    steps: list[tuple[str, str]] = []

    def work(line: MonitorConnection) -> Established | Failed:
        line.report("debug", f"in another process than {os.getppid()}")
        line.report("warning", "second")
        return ESTABLISHED

    worker = WorkerProcess(work)
    pid = worker.pid
    answer = worker.wait(within(5), lambda level, text: steps.append((level, text)))
    assert answer.failure is None
    assert steps == [("debug", f"in another process than {os.getpid()}"), ("warning", "second")]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_exception_in_the_worker_is_a_failure() -> None:
    def work(line: MonitorConnection) -> Established | Failed:
        raise RuntimeError("what now")

    answer = wait(WorkerProcess(work))
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.errno) == ("internal", errno.EIO)
    assert "RuntimeError: what now" in answer.failure.reason


def test_silent_worker_is_killed_at_the_deadline_and_the_limit_named() -> None:
    def work(line: MonitorConnection) -> Established | Failed:
        line.report("debug", "asking the KDC")
        time.sleep(60)
        return ESTABLISHED

    worker = WorkerProcess(work)
    pid = worker.pid
    started = time.monotonic()
    answer = worker.wait(within(0.3), ignore)
    assert 0.25 < time.monotonic() - started < 2
    assert answer.failure is not None and answer.failure.errno == errno.ETIMEDOUT
    assert "0.3 s" in answer.failure.reason and "asking the KDC" in answer.failure.reason
    assert "[upcall] timeout" in answer.failure.hint
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_killed_worker_is_an_error_at_once() -> None:
    def work(line: MonitorConnection) -> Established | Failed:
        os.kill(os.getpid(), signal.SIGKILL)
        return ESTABLISHED

    started = time.monotonic()
    answer = wait(WorkerProcess(work))
    assert time.monotonic() - started < 2
    assert answer.failure is not None and answer.failure.kind == "worker-died"
    assert "signal 9" in answer.failure.reason


@pytest.mark.parametrize(
    "messages",
    [
        [b"X"],
        [b"S"],
        [b"Sx" + b"unknown level"],
        [b"Sd" + bytes(1001)],
        [b"E" + bytes(8192)],
        [b"E" + bytes(8292)],
        [b"F\1\0\0\0\0\0\0\0one\0two"],
        [b"Sdstep"] * 65,
        [worker_messages.pack_group(7), b"C", b"Ttoken"],
        [b"Sdstep", worker_messages.pack_group(0)],
        [worker_messages.pack_group(7), worker_messages.pack_group(0)],
        [b"Gxy"],
        [b"T" + bytes(16385)],
        [b"C", b"C"],
        [b"C", worker_messages.pack_group(0)],
        [b"Cx"],
        [b"R" + bytes(8)],
        [b""],
    ],
    ids=[
        "kind", "empty", "level", "long-step", "bad-context", "over-long", "two-texts", "flood",
        "no-writer", "late-group", "second-group", "short-group", "long-token",
        "two-credentials", "group-too-late", "long-credential", "reply", "nothing",
    ],
)  # fmt: skip
def test_hostile_worker_is_ended_with_an_error(messages: list[bytes]) -> None:
    worker = hostile(messages)
    pid = worker.pid
    answer = wait(worker)
    assert answer.failure is not None
    assert answer.failure.kind == "worker-protocol"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_only_the_first_answer_counts() -> None:
    other = Failed(errno.EIO, 0, "late", "a second answer", "")
    answer = wait(hostile([worker_messages.pack_outcome(FAILED), worker_messages.pack_outcome(other)]))
    assert answer.failure == FAILED


alphabet = st.one_of(
    st.binary(max_size=40),
    st.just(b"C"),
    st.binary(max_size=60).map(lambda body: b"T" + body),
    st.binary(max_size=60).map(lambda body: b"Sd" + body),
    st.binary(max_size=60).map(lambda body: b"E" + body),
    st.binary(max_size=60).map(lambda body: b"F" + body),
    st.integers(0, 2**32 - 1).map(worker_messages.pack_group),
    st.sampled_from([worker_messages.pack_outcome(ESTABLISHED), worker_messages.pack_outcome(FAILED)]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(alphabet, max_size=8))
def test_monitor_survives_any_peer(messages: list[bytes]) -> None:
    """It ends with one answer whose payload is a payload, and the worker is gone."""
    writer = Fake()
    worker = hostile(messages, writer)
    pid = worker.pid
    answer = worker.wait(within(0.1), ignore)
    payload.unpack(answer.payload)
    assert all(gid == writer.got[0][0] for gid, _ in writer.got)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_descriptors_of_the_monitor_are_closed() -> None:
    """The user may take the worker over."""

    def work(line: MonitorConnection) -> Established | Failed:
        own = line._socket.fileno()
        line.close_other_descriptors()
        listing = {int(name) for name in os.listdir("/proc/self/fd")}
        left = [number for number in listing if number not in (0, 1, 2, own) and is_open(number)]
        kept = [is_open(number) for number in (0, 1, 2)]
        return Failed(errno.EIO, 0, "x", f"{left} {kept == before}", "")

    def is_open(number: int) -> bool:
        try:
            os.fstat(number)
        except OSError:
            return False
        return True

    before = [is_open(number) for number in (0, 1, 2)]
    reader, writer = os.pipe()
    high = os.dup2(reader, 900)
    try:
        answer = wait(WorkerProcess(work))
    finally:
        for number in (reader, writer, high):
            os.close(number)
    assert answer.failure is not None and answer.failure.reason == "[] True"


def test_descriptors_are_refused_where_the_kernel_can() -> None:
    """Whoever is told that they are refused receives none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null") as file:
        refused = worker_process.refuse_descriptors(ours)
        try:
            socket.send_fds(theirs, [b"x"], [file.fileno()])
        except OSError as error:
            assert refused and error.errno == errno.EPERM
            return
        received = socket.recv_fds(ours, 1, 1)[1]
        for number in received:
            os.close(number)
        assert bool(received) != refused


def test_descriptors_that_linger_hold_nobody_up() -> None:
    """A socket with unsent data and SO_LINGER, sent along with a message: who receives it
    waits when it is dropped, unless the kernel refuses it or an alarm rings."""

    def serve(end: socket.socket, work: object) -> None:
        sender, _listener = peers.lingering(20)
        try:
            socket.send_fds(end, [b"Sdstep"], [sender.fileno()])
        except OSError:
            end.send(b"Sdrefused")
        sender.close()
        time.sleep(60)

    original = monitor_connection.serve
    monitor_connection.serve = serve
    try:
        worker = WorkerProcess(lambda line: ESTABLISHED)
    finally:
        monitor_connection.serve = original
    started = time.monotonic()
    answer = wait(worker, 1.0)
    assert time.monotonic() - started < 3
    assert answer.failure is not None and answer.failure.errno == errno.ETIMEDOUT


def test_alarm_rings_where_nothing_else_notices() -> None:
    with worker_process._Alarm() as alarm, pytest.raises(LgssError, match="beyond the deadline"):
        alarm.at(time.monotonic() + 0.1)
        time.sleep(5)
    assert not isinstance(getattr(signal.getsignal(signal.SIGALRM), "__self__", None), worker_process._Alarm)


def test_alarm_takes_no_answer_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the worker's end takes its time."""
    monkeypatch.setattr(worker_process, "DYING_SECONDS", 0.05)

    class Slow(WorkerProcess):
        def _end(self) -> None:
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass
            super()._end()

    assert wait(Slow(lambda line: ESTABLISHED)).failure is None


def test_worker_that_ends_with_an_answer_unread() -> None:
    """The socket says ECONNRESET then."""

    def dying(line: MonitorConnection) -> Established | Failed:
        line.send_group(7)
        line.credential_ready()
        line._socket.send(b"Ttoken")
        time.sleep(0.4)
        os._exit(3)

    answer = wait(WorkerProcess(dying, Fake(delay=0.1)))
    assert answer.failure is not None and answer.failure.kind == "worker-died"
    assert "exit status 3" in answer.failure.reason


def test_outcome_that_fits_no_message_is_a_failure() -> None:
    huge = Established(128, b"handle", bytes(100_000), 2_000_000_000, "alice")
    answer = wait(WorkerProcess(lambda line: huge))
    assert answer.failure is not None and answer.failure.kind == "payload"


def test_the_wait_for_a_credential_counts_from_the_workers_first_step() -> None:
    """With a hundred upcalls at once a worker may take longer to begin than a KDC to answer."""

    def work(connection: MonitorConnection) -> Established | Failed:
        time.sleep(0.4)
        connection.report("debug", "working")
        connection.credential_ready()
        return ESTABLISHED

    due = Deadline(time.monotonic() + 2, 0.2, "[upcall] machine_wait")
    ready: list[bool] = []
    answer = WorkerProcess(work).wait(within(3), ignore, lambda: ready.append(True), due)
    assert answer.failure is None and ready


@pytest.mark.parametrize(
    ("begins", "kind", "words"),
    [(False, "resources", "had not begun"), (True, "limit", "no answer within 0.2 s; last step: working")],
)
def test_a_credential_that_comes_too_late(begins: bool, kind: str, words: str) -> None:
    def work(connection: MonitorConnection) -> Established | Failed:
        if begins:
            connection.report("debug", "working")
        time.sleep(60)
        return ESTABLISHED

    began = time.monotonic()
    due = Deadline(began + 0.5, 0.2, "[upcall] machine_wait")
    answer = WorkerProcess(work).wait(within(5), ignore, lambda: None, due)
    assert time.monotonic() - began < 2
    assert answer.failure is not None and answer.failure.kind == kind
    assert words in answer.failure.reason and "machine_wait" in answer.failure.hint

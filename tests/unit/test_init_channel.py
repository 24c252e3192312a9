"""The monitor's writes to init_channel for its worker."""

from __future__ import annotations

import errno
import signal
import time

import pytest

from lgss_keyring.formats import worker_messages
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.monitor.worker_process import WorkerProcess
from lgss_keyring.worker.monitor_connection import MonitorConnection

from .workers import ESTABLISHED, Fake, hostile, wait


def carried(line: MonitorConnection) -> Established | Failed:
    line.send_group(1234)
    line.report("debug", "before")
    line.credential_ready()
    status, reply = line.send_token(b"token")
    return Failed(errno.EIO, 0, "told", f"{status} {reply!r}")


def test_token_is_carried_and_its_answer_told() -> None:
    writer = Fake((-errno.ETIMEDOUT, bytes(8192)))
    answer = wait(WorkerProcess(carried, writer))
    assert answer.failure is not None and answer.failure.reason == f"-110 {bytes(8192)!r}"[:1000]
    assert writer.got == [(1234, b"token")]


def test_failed_write_is_told_as_an_error() -> None:
    answer = wait(WorkerProcess(carried, Fake(OSError(errno.ENODEV, "No such device"))))
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.errno) == ("init-channel", errno.ENODEV)


def test_time_of_the_server_is_not_the_negotiations() -> None:
    worker = WorkerProcess(carried, Fake(delay=0.5))
    answer = wait(worker, 0.25)
    assert answer.failure is not None and answer.failure.kind == "told"


def test_stuck_write_ends_at_its_own_limit() -> None:
    started = time.monotonic()
    answer = wait(WorkerProcess(carried, Fake(delay=3, timeout=0.4)))
    assert time.monotonic() - started < 2
    assert answer.failure is not None and answer.failure.kind == "limit"
    assert "[lustre] reply_timeout" in answer.failure.hint


@pytest.mark.parametrize(
    "messages",
    [
        [b"C", b"Ttoken"],
        [worker_messages.pack_group(7), b"Ttoken"],
        [worker_messages.pack_group(7), b"C", b"Ttoken", b"Ttoken"],
        [worker_messages.pack_group(7), b"C", b"Ttoken", worker_messages.pack_outcome(ESTABLISHED)],
        [worker_messages.pack_group(7), b"C", b"T"],
    ],
    ids=["before-the-group", "before-the-credential", "second-token", "answer-at-once", "empty"],
)
def test_hostile_worker_with_init_channel(messages: list[bytes]) -> None:
    writer = Fake(delay=0.2)
    answer = wait(hostile(messages, writer))
    assert answer.failure is not None and answer.failure.kind == "worker-protocol"
    assert len(writer.got) <= 1


def test_worker_that_dies_while_its_token_is_carried() -> None:
    def kill_after(seconds: float) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def dying(line: MonitorConnection) -> Established | Failed:
        kill_after(0.1)
        return carried(line)

    answer = wait(WorkerProcess(dying, Fake(delay=0.9)))
    assert answer.failure is not None and answer.failure.kind == "worker-died"
    assert "signal 14" in answer.failure.reason


def test_tokens_do_not_add_up_to_hours() -> None:
    def many(line: MonitorConnection) -> Established | Failed:
        line.send_group(7)
        line.credential_ready()
        for _ in range(20):
            line.send_token(b"token")
        return ESTABLISHED

    writer = Fake(delay=0.3, timeout=0.5)
    started = time.monotonic()
    answer = wait(WorkerProcess(many, writer))
    assert time.monotonic() - started < 4
    assert answer.failure is not None and answer.failure.kind == "limit"

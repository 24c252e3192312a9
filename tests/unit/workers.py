"""Workers for tests: what they say, and one that says what it likes."""

from __future__ import annotations

import errno
import os
import socket
import time

from hypothesis import strategies as st

from lgss_keyring.formats.outcome import Answer, Established, Failed
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.monitor.init_channel import InitChannelWriter
from lgss_keyring.monitor.worker_process import WorkerProcess
from lgss_keyring.worker import monitor_connection

ESTABLISHED = Established(128, b"handle", b"context", 2_000_000_000, "alice@LGSS.TEST")
FAILED = Failed(errno.ENOKEY, 7 << 16, "no-ticket", "there is no ticket", "run kinit")

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)


def ignore(level: str, text: str) -> None:
    pass


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds, seconds, "[upcall] timeout")


def wait(worker: WorkerProcess, seconds: float = 5.0) -> Answer:
    return worker.wait(within(seconds), ignore)


def hostile(messages: list[bytes], writer: InitChannelWriter | None = None) -> WorkerProcess:
    """A worker that says what it likes, over the very socket it was given."""

    class Hostile(WorkerProcess):
        pass

    original = monitor_connection.serve

    def serve(end: socket.socket, work: object) -> None:
        for message in messages:
            end.send(message)
        time.sleep(60)

    monitor_connection.serve = serve
    try:
        return Hostile(lambda line: ESTABLISHED, writer)
    finally:
        monitor_connection.serve = original


class Fake(InitChannelWriter):
    """Stands for Lustre's kernel, which needs one: remembers, and answers when told."""

    def __init__(
        self, result: tuple[int, bytes] | OSError = (0, b"reply"), delay: float = 0.0, timeout: float = 1.0
    ) -> None:
        self.timeout = timeout
        self.got: list[tuple[int, bytes]] = []
        self._path = "init_channel"
        self._told, self._delay = result, delay

    def _write(self, gid: int, token: bytes, done: int) -> None:
        self.got.append((gid, token))
        time.sleep(self._delay)
        self._result = self._told
        os.close(done)

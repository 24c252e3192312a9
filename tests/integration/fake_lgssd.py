"""lgssd's loop with workers whose work is a test's: what it believes, whom it lets wait, what it ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lgss_keyring.daemon import records
from lgss_keyring.daemon.dispatcher import Dispatcher
from lgss_keyring.daemon.records import Records
from lgss_keyring.daemon.settings import Settings
from lgss_keyring.daemon.upcalls import Upcalls, listen
from lgss_keyring.formats import job_messages, payload, pipe, worker_messages
from lgss_keyring.formats.callout import format_callout
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.front import lgssd_messages
from lgss_keyring.system.log import Log
from tests.support import runs
from tests.support.site import LOOPBACK_NID

LIFE = 3600


class Worker:
    """A worker's end, for the work of a test."""

    def __init__(self, connection: socket.socket, page: job_messages.Page) -> None:
        self.connection = connection
        self.page = page
        self._queue: dict[int, job_messages.Job] = {}

    def next(self) -> tuple[int, bytes]:
        """The number and the message of what comes next; the process ends with the connection."""
        self.page.idle()
        data = self.connection.recv(20000)
        if not data:
            os._exit(0)
        number, message = job_messages.split(data)
        self.page.busy(number)
        return number, message

    def job(self) -> job_messages.Job:
        """The next job that nobody has dropped; what is no job is left out.  As a worker of ours it reads all
        that has come first: one that does what others have been given in its place has no end of it."""
        while True:
            is_waiting = not self._queue
            if is_waiting:
                self.page.idle()
            try:
                data = self.connection.recv(20000, 0 if is_waiting else socket.MSG_DONTWAIT)
            except BlockingIOError:
                number = next(iter(self._queue))
                self.page.busy(number)
                return self._queue.pop(number)
            if not data:
                os._exit(0)
            number, message = job_messages.split(data)
            if message[:1] == b"J":
                self._queue[number] = job_messages.unpack_job(data)
            elif message == b"D":
                self._queue.pop(number, None)

    def send(self, number: int, message: bytes) -> None:
        """Send a message about the job ``number``."""
        self.connection.send(job_messages.with_number(number, message))

    def ready(self, number: int) -> None:
        """The credential is there."""
        self.send(number, worker_messages.CREDENTIAL_READY)

    def established(self, number: int) -> None:
        """End the job with a context, whose handle is the worker's pid."""
        handle = struct.pack("=Q", os.getpid())
        outcome = Established(32, handle, b"context", int(time.time()) + LIFE, "alice@TEST")
        self.send(number, worker_messages.pack_outcome(outcome))

    def failed(self, number: int, failure: Failed) -> None:
        """End the job with ``failure``."""
        self.send(number, worker_messages.pack_outcome(failure))


def serve_all(worker: Worker) -> None:
    """Answer each job with a context."""
    while True:
        job = worker.job()
        worker.ready(job.number)
        worker.established(job.number)


class Child:
    """The child of an upcall, in the test's process."""

    def __init__(self, path: str, message: bytes) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(10)
        self.connection.connect(path)
        self.connection.send(message)

    def hear(self) -> bytes:
        """The next message that is no pulse; empty at the end."""
        while (message := self.connection.recv(lgssd_messages.MESSAGE_LIMIT)) == lgssd_messages.AT_WORK:
            pass
        return message

    def answer(self) -> lgssd_messages.Answer:
        """The answer, after the word if there is one, and say that the key is updated."""
        message = self.hear()
        if message == lgssd_messages.GO:
            message = self.hear()
        answer = lgssd_messages.Answer(message)
        self.connection.send(lgssd_messages.pack_done(0))
        assert self.connection.recv(1) == b""
        self.connection.close()
        return answer

    def served_by(self) -> int:
        """The pid of the worker that made its context."""
        decoded = payload.unpack(self.answer().payload)
        assert isinstance(decoded, payload.ContextPayload), decoded
        return int(struct.unpack("=Q", decoded.handle)[0])

    def close(self) -> None:
        """Be gone."""
        self.connection.close()


class PipePeer:
    """A process that sends records, in the test's process."""

    def __init__(self, path: str) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(10)
        self.connection.connect(path)

    def ask(self, uid: int, seq: int = 1, **fields: Any) -> None:
        """Send a record for a context of ``uid``."""
        values = {"gid": uid, "service": 1, "nid": LOOPBACK_NID, "obd_name": "fake-MDT0000-mdc", **fields}
        self.connection.send(pipe.Upcall(seq=seq, uid=uid, **values).pack())

    def hear(self) -> tuple[int, int]:
        """The number of the next answer's record, and its errno, or the pid of the worker that has made
        the context, negative."""
        seq, answer = pipe.unpack_downcall(self.connection.recv(pipe.DOWNCALL_LIMIT))
        if isinstance(answer, payload.FailurePayload):
            return seq, answer.rpc_error
        return seq, -int(struct.unpack("=Q", answer.handle)[0])

    def served_by(self, uid: int) -> int:
        """The pid of the worker that serves a record for ``uid``."""
        self.ask(uid, seq=77)
        seq, pid = self.hear()
        assert seq == 77 and pid < 0, (seq, pid)
        return -pid

    def close(self) -> None:
        """Be gone."""
        self.connection.close()


class FakeLgssd:
    """lgssd's loop in a process of its own; a context manager."""

    def __init__(
        self, work: Callable[[Worker], None], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.folder = runs.folder("lgssd")
        self.path = str(self.folder / "upcall.sock")
        self.config = self.folder / "config.toml"
        self.log_file = self.folder / "log"
        self.krb5_conf = self.folder / "krb5.conf"
        self.krb5_conf.write_text("[libdefaults]\n")
        sections: dict[str, dict[str, Any]] = {
            "log": {"file": str(self.log_file)},
            "krb5": {"config": str(self.krb5_conf), "ccache_directory": str(self.folder / "machine")},
        }
        for name, values in (settings or {}).items():
            sections.setdefault(name, {}).update(values)
        self.write_config(sections)
        self.sections = sections
        self._work = work
        self.pipe_path = str(self.folder / "pipe.sock")
        listeners = listen(self.path), records.listen(self.pipe_path)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(*listeners)
            finally:
                os._exit(1)
        for each in listeners:
            each.close()

    def write_config(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the configuration."""
        lines = []
        for name, values in sections.items():
            lines.append(f"[{name}]")
            lines += [
                f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
                for key, value in values.items()
            ]
        self.config.write_text("\n".join(lines) + "\n")
        self.config.chmod(0o644)

    def _serve(self, upcall_listener: socket.socket, pipe_listener: socket.socket) -> NoReturn:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        settings = Settings(str(self.config))
        settings.announce(self.path)
        log = Log(path=str(self.log_file))
        selector = selectors.DefaultSelector()

        def run(connection: socket.socket, page: job_messages.Page, uid: int, *_: object) -> NoReturn:
            connection.send(job_messages.pack_group(uid + 1, True))
            self._work(Worker(connection, page))
            os._exit(0)

        def close_in_child() -> None:
            upcalls.close_in_child()
            records.close_in_child()

        dispatcher = Dispatcher(settings, selector, log, close_in_child, run)
        dispatcher.scrapes.listen_beside(self.path)
        upcalls = Upcalls(upcall_listener, dispatcher, selector, log)
        records = Records(pipe_listener, settings, dispatcher, selector, log)
        while True:
            for key, _ in selector.select(dispatcher.timeout):
                key.data()
            dispatcher.turn()
            records.turn()

    def ask(
        self,
        uid: int,
        requestor: int | None = None,
        key_type: str = "user",
        timeout: int = 30,
        config: str | None = None,
        **fields: Any,
    ) -> Child:
        """An upcall of ``requestor`` for a context of ``uid``, with callout info of ``fields``."""
        values: dict[str, Any] = {"uid": uid, "gid": uid, "lustre_service": 1, "target_nid": LOOPBACK_NID}
        values |= {"obd_name": "fake-MDT0000-mdc", **fields}
        asks = str(uid if requestor is None else requestor)
        arguments = [
            "create",
            "4711",
            key_type,
            "lgss:fake",
            format_callout(**values),
            asks,
            asks,
            "0",
            "0",
            "0",
        ]
        message = lgssd_messages.pack_upcall(
            5, timeout, "", str(self.config) if config is None else config, arguments
        )
        assert message is not None
        return Child(self.path, message)

    def connect(self, uid: int = 0) -> PipePeer:
        """A peer of the pipe's socket that is ``uid``, by the kernel."""
        os.setegid(uid)
        os.seteuid(uid)
        try:
            return PipePeer(self.pipe_path)
        finally:
            os.seteuid(0)
            os.setegid(0)

    def workers(self) -> list[int]:
        """The pids of its workers."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def log(self) -> str:
        """All that it has logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def close(self) -> None:
        """End it and its workers."""
        workers = self.workers()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        runs.remove(self.folder)

    def __enter__(self) -> FakeLgssd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def children(count: int, ask: Callable[[], Child]) -> Iterator[list[Child]]:
    """So many upcalls, closed at the end."""
    found = [ask() for _ in range(count)]
    try:
        yield found
    finally:
        for child in found:
            child.close()

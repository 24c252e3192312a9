"""The socket and the file that show lgssd's metrics, and a short-lived process for each answer.

The answer is made in a process of its own, at the lowest priority, because prometheus_client takes
50 ms and several MiB to load, and because the life left of the machine's TGT is in files.  The fork
copies the counters of that moment (:mod:`.metrics`).  So lgssd's loop reads nothing that a client sends
and waits for none.

A scrape is an HTTP request at a Unix socket that root alone can connect to: there are at most
:data:`~.limits.SCRAPES` at a time, for at most :data:`~.limits.SCRAPE_SECONDS`.  For node_exporter the
same goes into a file each minute, if ``[metrics] textfile`` names one.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import time

from lgss_keyring.daemon import forked, limits, listener, metrics
from lgss_keyring.monitor import priority
from lgss_keyring.system import own_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lgss_keyring.daemon import exposition
    from lgss_keyring.daemon.pool import Pool
    from lgss_keyring.formats.config import Config
    from lgss_keyring.system.log import Log

    class Dispatcher(exposition.Dispatcher, Protocol):
        """What is needed of :class:`lgss_keyring.daemon.dispatcher.Dispatcher`."""

        pool: Pool


SOCKET_NAME = "metrics.sock"
"""The socket's name, in the folder of that for upcalls."""


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``, in a folder that is root's alone.  Raises OSError."""
    own_folder.check(os.path.dirname(path))
    return listener.listen(path, limits.SCRAPES, kind=socket.SOCK_STREAM)


class Scrapes:
    """The answers under way.  The loop calls :meth:`turn` after each round, and waits no longer than
    :attr:`timeout`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: Callable[[], Config],
        selector: selectors.BaseSelector,
        log: Log,
        in_child: Callable[[], None],
    ) -> None:
        """``settings()`` gives the configuration of the moment; ``in_child()`` closes, in a process that was
        forked, what this one has open."""
        self._dispatcher = dispatcher
        self._settings = settings
        self._selector = selector
        self._log = log
        self._in_child = in_child
        self._listener: socket.socket | None = None
        self._path = ""
        self._scrapes: dict[int, float] = {}
        """When each process has to have ended (of time.monotonic()), by pid; 0 if it was killed."""
        self._writer = 0
        """The process that writes the text file, one of them; 0 if there is none."""
        self._workers: exposition.Workers = []
        """What workers did at the fork, in a process that was forked."""
        self._next_file = 0.0
        self._file_is_good = True
        """Whether it could be written the last time."""

    def listen_beside(self, upcall_path: str) -> None:
        """Answer who connects to the socket :data:`SOCKET_NAME` in the folder of ``upcall_path``.  If there
        cannot be one, the log says so."""
        path = os.path.join(os.path.dirname(upcall_path), SOCKET_NAME)
        try:
            self._listener = listen(path)
        except OSError as error:
            self._log.event("info", f"no metrics at {path}: {error.strerror or error}")
            return
        self._path = path
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def timeout(self) -> float:
        """Seconds until :meth:`turn` has to be called again, whatever comes."""
        if self._scrapes:
            return 1.0
        if not self._settings().metrics.textfile:
            return limits.TEXTFILE_SECONDS
        return max(0.0, self._next_file - time.monotonic())

    def turn(self) -> None:
        """Do what is due."""
        if self._scrapes:
            self._look_at_processes(time.monotonic())
        if time.monotonic() < self._next_file:
            return
        self._next_file = time.monotonic() + limits.TEXTFILE_SECONDS
        path = self._settings().metrics.textfile
        if path and not self._writer:
            self._writer = self._fork(lambda: self._write_file(path), -1, self._file_is_good)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            number = len(self._scrapes) - (self._writer in self._scrapes)
            fits = number < limits.SCRAPES
            if not fits or not self._fork(lambda: self._answer(connection), connection.fileno()):
                try:
                    connection.send(b"HTTP/1.0 503 Service Unavailable\r\n\r\n", socket.MSG_DONTWAIT)
                except OSError:
                    pass  # it is gone

    def _fork(self, work: Callable[[], None], kept: int, tells: bool = True) -> int:
        """Do ``work`` in a process, which keeps the descriptor ``kept`` alone; returns its pid, 0 if there
        can be none.  ``tells``: if it fails, the log says so."""
        lgssd = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._log.event("warning", f"no metrics now: cannot fork: {error.strerror}")
            return 0
        if pid == 0:
            try:
                gc.disable()  # it would write to all pages, which are shared with lgssd
                self._begin_process(lgssd, kept)
                work()
                os._exit(0)
            except Exception as error:
                if tells:
                    self._log.event("warning", f"no metrics now: {error}")
            finally:
                os._exit(1)
        self._scrapes[pid] = time.monotonic() + limits.SCRAPE_SECONDS
        return pid

    # In the process that was forked.

    def _look_at_workers(self) -> exposition.Workers:
        found = []
        for worker in self._dispatcher.pool.all():
            state = metrics.IDLE
            if worker.jobs:
                state = metrics.BLOCKED_NOW if worker.is_blocked else metrics.BUSY
            found.append((worker.owner < 0, state))
        return found

    def _begin_process(self, lgssd: int, kept: int) -> None:
        self._workers = self._look_at_workers()  # while their pages are there
        forked.begin(lgssd, self._settings(), self._in_child, kept)
        signal.alarm(limits.SCRAPE_SECONDS)
        priority.lower(limits.SCRAPE_NICE)

    def _answer(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        request = b""
        try:
            # All of it: who sends gets an error if something is left unread.
            while b"\r\n\r\n" not in request and b"\n\n" not in request:
                more = connection.recv(limits.SCRAPE_REQUEST_BYTES - len(request))
                if not more:
                    return  # it is gone, or its request is too long
                request += more
            response = self._response(request.split(b"\n", 1)[0].split())
            connection.sendall(response)
        except ConnectionError:
            pass  # it is gone

    def _response(self, words: list[bytes]) -> bytes:
        """The response to a request line."""
        if len(words) != 3 or words[0] != b"GET":
            return b"HTTP/1.0 400 Bad Request\r\n\r\n"
        if words[1].partition(b"?")[0] != b"/metrics":
            return b"HTTP/1.0 404 Not Found\r\n\r\n"
        from lgss_keyring.daemon import exposition  # here alone: it loads prometheus_client

        body = exposition.openmetrics(self._dispatcher, self._workers, self._settings())
        head = f"HTTP/1.0 200 OK\r\nContent-Type: {exposition.CONTENT_TYPE}\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    def _write_file(self, path: str) -> None:
        from lgss_keyring.daemon import exposition

        text = exposition.text(self._dispatcher, self._workers, self._settings())
        new = f"{path}.new"  # node_exporter reads *.prom only
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.rename(new, path)

    # In lgssd again.

    def _look_at_processes(self, now: float) -> None:
        for pid, deadline in list(self._scrapes.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._scrapes[pid]
                if pid == self._writer:
                    self._writer = 0
                    self._file_is_good = status == 0
            elif deadline and now >= deadline + 1:  # its alarm should have come
                os.kill(pid, signal.SIGKILL)
                self._scrapes[pid] = 0.0

    def close_in_child(self) -> None:
        """Close, in a process that was forked, the listening socket."""
        if self._listener is not None:
            self._listener.close()

    def close(self) -> None:
        """Listen no more, and end the processes."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            try:
                os.unlink(self._path)
            except OSError:
                pass  # its folder has gone already
            self._listener.close()
            self._listener = None
        for pid in self._scrapes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._scrapes.clear()

"""The resident workers of lgssd: one to four for each user who asks, and for the machine.

A worker has become its user for good, with everything loaded, and serves many requests of that user
(:mod:`lgss_keyring.worker.resident`).  A process for each request costs 45 ms of CPU time; one that
stays costs 1 ms.  A second one of the same user is started only if the first is *blocked*, which
means that it has not come back to its loop for :data:`~lgss_keyring.daemon.limits.BLOCKED_SECONDS`
(a KDC, a name service or a file system keeps it), and more requests wait.

A user may control their worker: :mod:`.negotiation` believes what it sends for that user's requests only.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import selectors
import signal
import socket
import struct
import time

from lgss_keyring.daemon import limits, metrics, room
from lgss_keyring.daemon.departing import Departing
from lgss_keyring.daemon.dying import Dying
from lgss_keyring.daemon.resident_worker import MACHINE_FOR_USERS, ClosedError, Worker
from lgss_keyring.daemon.room import FullError
from lgss_keyring.formats import job_messages, worker_messages
from lgss_keyring.formats.errors import Kind
from lgss_keyring.formats.wiping import wipe
from lgss_keyring.front import oom
from lgss_keyring.monitor import priority
from lgss_keyring.monitor.worker_process import refuse_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from lgss_keyring.daemon.resident_worker import Client
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.system.log import Log

    Run = Callable[[socket.socket, job_messages.Page, int, bool, UpcallRequest, Config, str], NoReturn]
    """The work of a worker, in its process; as :func:`lgss_keyring.worker.resident.run`."""


class Pool:
    """All workers."""

    def __init__(self, selector: selectors.BaseSelector, run: Run, log: Log, in_child: Callable[[], None]):
        """``in_child()`` closes, in a new worker, what this process has open."""
        self.metrics = metrics.Metrics()
        self._selector = selector
        self._run = run
        self._log = log
        self._in_child = in_child
        self._workers: dict[int, Worker] = {}
        self._dying = Dying()
        self._departing = Departing()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._workers)

    def all(self) -> list[Worker]:
        """All workers that have not ended."""
        return list(self._workers.values())

    def of(self, owner: int) -> list[Worker]:
        """The workers of ``owner`` that may get jobs."""
        return [each for each in self._workers.values() if each.owner == owner and not each.is_retired]

    def worker_for(self, owner: int, first: UpcallRequest, settings: Config, level: str) -> Worker | None:
        """A worker of ``owner`` that can take a job now, a new one if need be; None if that has to
        wait for one that it has.  ``first`` is the request that it is needed for.  Raises FullError, and
        OSError if there can be no process."""
        own = self.of(owner)
        free = [each for each in own if len(each.jobs) < limits.JOBS_OF_A_WORKER and not each.is_blocked]
        if free:
            return min(free, key=lambda each: len(each.jobs))
        # One that was killed and has not ended still uses memory: it counts.
        number = len(own) + self._dying.owners().count(owner)
        if own and not all(each.is_blocked for each in own):
            return None
        if number >= limits.WORKERS_OF_AN_OWNER:
            if owner == MACHINE_FOR_USERS:
                raise FullError
            return None
        rivals = room.rivals(owner, [each.owner for each in self._workers.values()] + self._dying.owners())
        if rivals is not None and not self._make_room(rivals):
            if number:
                return None
            raise FullError
        return self._start(owner, first, settings, level, number)

    def _make_room(self, rivals: Callable[[int], bool]) -> bool:
        idle = [each for each in self._workers.values() if not each.jobs and rivals(each.owner)]
        if idle:
            # Not retired: those that their users have stopped would be too many at the same time.
            self.kill(min(idle, key=lambda each: each.idle_since), "others need the room")
        return bool(idle)

    def _start(self, owner: int, first: UpcallRequest, settings: Config, level: str, number: int) -> Worker:
        own_end, workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            own_end.setsockopt(socket.SOL_SOCKET, limits.SO_SNDBUFFORCE, limits.WORKER_BUFFER_BYTES)
        except OSError:
            pass  # no CAP_NET_ADMIN: fewer messages fit, and a worker that is full is ended
        refuses_descriptors = refuse_descriptors(own_end)
        memory = mmap.mmap(-1, job_messages.Page.SIZE)
        page = job_messages.Page(memory)
        # The pages of what is loaded are shared with the workers only as long as nobody writes to
        # them, and the garbage collector does.
        gc.freeze()
        try:
            pid = os.fork()
        except OSError:
            own_end.close()
            workers_end.close()
            raise
        if pid == 0:
            try:
                self._become_worker(own_end)
                if owner >= 0:
                    priority.lower(limits.NICE if number == 0 else limits.NICE_OF_FURTHER)
                self._run(workers_end, page, max(owner, 0), owner < 0, first, settings, level)
            finally:
                os._exit(1)
        workers_end.close()
        worker = Worker(owner, pid, own_end, page)
        worker.may_get_descriptors = owner > 0 and not refuses_descriptors
        self._workers[pid] = worker
        self.metrics.worker(owner < 0, metrics.STARTED)
        self._selector.register(own_end, selectors.EVENT_READ, lambda: self._read(worker))
        return worker

    def _become_worker(self, own_end: socket.socket) -> None:
        signal.set_wakeup_fd(-1)  # before its pipe is closed; the worker forgets the signals themselves
        own_end.close()
        self._in_child()
        oom.set_score(oom.ORDINARY)

    def close_in_child(self) -> None:
        """Close, in a process that was forked, the connections to all workers, and their pages: who can write
        to another user's page can have that user's worker killed."""
        for worker in self._workers.values():
            worker.connection.close()
            worker.page.close()

    def begin(self, worker: Worker, client: Client, job: Callable[[int], bytes]) -> int:
        """Give ``worker`` a job for ``client``; returns its number, from which ``job`` makes the message.
        Raises ClosedError."""
        number = next(self._numbers) & 0x7FFFFFFF
        try:
            worker.connection.send(job(number), socket.MSG_DONTWAIT)
        except OSError as error:
            raise ClosedError(str(error.strerror)) from error
        worker.jobs[number] = client
        worker.served += 1
        # What libraries leak goes with it, also if it is never without work.
        old = time.monotonic() - worker.started > limits.WORKER_AGE_SECONDS
        if old or worker.served >= limits.JOBS_IN_ALL:
            worker.is_retired = True
        return number

    def drop(self, worker: Worker, number: int) -> None:
        """Nobody waits for this job any more."""
        if worker.jobs.pop(number, None) is not None and not worker.is_gone:
            try:
                worker.send(number, b"D")
            except ClosedError:
                self.kill(worker, "it took no messages")
        self._rest(worker)

    def ended(self, worker: Worker, number: int) -> None:
        """The job has its outcome."""
        worker.jobs.pop(number, None)
        self._rest(worker)

    def _rest(self, worker: Worker) -> None:
        if worker.jobs or worker.is_gone:
            return
        worker.idle_since = time.monotonic()
        if worker.is_retired:
            self.retire(worker)

    def retire(self, worker: Worker) -> None:
        """Give it no more jobs, and let it end when it has none."""
        worker.is_retired = True
        if not worker.jobs and not worker.is_gone:
            self.metrics.worker(worker.owner < 0, metrics.ENDED)
            self._forget(worker)  # it ends when it finds its connection closed

    def retire_all(self) -> None:
        """Let all workers end: what they have loaded has changed."""
        for worker in list(self._workers.values()):
            self.retire(worker)

    def kill(self, worker: Worker, how: str) -> None:
        """End it at once; its jobs are told ``how`` it ended."""
        if not worker.is_gone:
            self.metrics.worker(worker.owner < 0, metrics.KILLED)
            self._forget(worker)
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except OSError:
            pass  # it has ended, and is waited for later
        jobs, worker.jobs = worker.jobs, {}
        for client in jobs.values():
            client.worker_ended(how)

    def _forget(self, worker: Worker) -> None:
        worker.is_gone = worker.is_retired = True
        self._workers.pop(worker.pid, None)
        self._dying.add(worker.pid, worker.owner)
        self._selector.unregister(worker.connection)
        if worker.may_get_descriptors:
            self._departing.close(worker.connection)
        else:
            worker.connection.close()

    def _read(self, worker: Worker) -> None:
        for _ in range(limits.MESSAGES_AT_ONCE):
            if worker.is_gone:
                return
            try:
                message = worker.receive()
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                # Its exit status is not known yet, and nobody asks for it.
                self.kill(worker, "it has ended")
                return
            self._take(worker, message)

    def _take(self, worker: Worker, message: bytes) -> None:
        if worker.gid is None:
            worker.gid = job_messages.unpack_group(message)
            if worker.gid is None:
                self.kill(worker, "its first message is not the one that is due")
            return
        worker.messages += 1
        if worker.messages > limits.MESSAGES_OF_A_JOB * (worker.served + 1):
            self.kill(worker, "it sent more messages than its jobs need")
            return
        try:
            number, body = job_messages.split(message)
            client = worker.jobs.get(number)
            if client is not None:
                client.is_begun = True
                client.received(body)
            if body[:1] == b"E":
                wipe(message, body)
        except (worker_messages.ProtocolError, struct.error) as error:
            self._log.event("warning", f"worker {worker.pid}: {error}", error=Kind.WORKER_PROTOCOL)
            self.kill(worker, f"it sent what no worker of ours sends ({error})")

    def look_after(self) -> None:
        """End those that have been idle for long, and take jobs away from those that are blocked."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if not worker.jobs:
                if now - worker.idle_since > limits.IDLE_SECONDS:
                    self.retire(worker)
                continue
            before, worker.was_blocked = worker.was_blocked, worker.is_blocked
            if not worker.was_blocked:
                continue
            if not before:
                self.metrics.worker(worker.owner < 0, metrics.BLOCKED)
            current = worker.page.look()[1]
            waiting = [number for number, client in worker.jobs.items() if not client.is_begun]
            for number in waiting:
                if number == current or (worker.gid is None and number == waiting[0]):
                    continue
                client = worker.jobs[number]
                self.drop(worker, number)
                client.moved()

    def reap(self) -> None:
        """Wait for the processes that have ended."""
        self._dying.reap()
        self._departing.reap()

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers.values()):
            self.kill(worker, "lgssd ends")
        self._dying.kill_all()

    @property
    def has_processes(self) -> bool:
        """Whether there are any that have not been waited for."""
        return bool(self._workers or self._dying or self._departing)

"""In which order a resident worker does its work: messages first, then servers, then the next request."""

from __future__ import annotations

import os
import select
import socket
import time

from lgss_keyring.formats import job_messages
from lgss_keyring.worker import limits
from lgss_keyring.worker.dead_keys import DeadKeysCollector
from lgss_keyring.worker.resident_job import ResidentJob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from lgss_keyring.formats.config import Config


class ResidentLoop:
    """The requests in hand: those that wait for their turn, and those that wait for their server.

    The work on a request blocks the others only while libkrb5 asks a KDC or a name service is asked.
    """

    def __init__(
        self,
        connection: socket.socket,
        page: job_messages.Page,
        uid: int,
        is_machine: bool,
        settings: Config,
        level: str,
    ) -> None:
        self._connection = connection
        self._page = page
        self._uid = uid
        self._is_machine = is_machine
        self._settings = settings
        self._collector = DeadKeysCollector(uid)
        self._level = level
        self._queue: dict[int, tuple[float, job_messages.Job]] = {}
        """The requests that are not begun, in the order in which they came, each with its deadline."""
        self._jobs: dict[int, ResidentJob] = {}
        """The requests that are begun, by number."""
        self._by_descriptor: dict[int, ResidentJob] = {}
        """Those that wait for a TCP server."""
        self._next_look = 0.0
        self._epoll = select.epoll()
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def run(self) -> NoReturn:
        """Work until lgssd closes the connection; raises what must end this process."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait, read all that lgssd has sent, go on where servers have answered, and begin one request."""
        timeout = 0.0 if self._queue else limits.LOOK_SECONDS if self._by_descriptor else -1.0
        if timeout:
            self._page.idle()
        ready = self._epoll.poll(timeout)
        own = self._connection.fileno()
        if any(descriptor == own for descriptor, _ in ready):
            self._read()
        for descriptor, _ in ready:
            # Not there any more if a message has just dropped it.
            job = self._by_descriptor.get(descriptor)
            if job is not None:
                self._go_on(job)
        self._look_at_the_clock()
        if self._queue:
            number = next(iter(self._queue))
            self._begin(*self._queue.pop(number))

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv(limits.JOB_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not message:
                os._exit(0)  # lgssd has ended, or needs this worker no more
            number, rest = job_messages.split(message)
            if rest[:1] == b"J":
                job = job_messages.unpack_job(message)
                self._queue[number] = time.monotonic() + job.time_left, job
            elif rest == b"D":
                self._drop(number)
            elif rest == job_messages.COLLECT:
                self._page.busy(number)
                found = self._collector.collect()
                self._connection.send(job_messages.with_number(number, found.pack()))
            elif number in self._jobs:
                # None for a request that has ended meanwhile: lgssd did not know yet.
                self._jobs[number].answered(rest)
                self._settle(self._jobs[number])

    def _drop(self, number: int) -> None:
        if self._queue.pop(number, None) is None and number in self._jobs:
            self._jobs[number].drop()
            self._settle(self._jobs[number])

    def _begin(self, deadline: float, message: job_messages.Job) -> None:
        job = ResidentJob(message.number, self._connection, self._page, self._level)
        self._jobs[message.number] = job
        job.begin(message, deadline, self._uid, self._is_machine, self._settings)
        self._settle(job)

    def _go_on(self, job: ResidentJob) -> None:
        job.go_on()
        self._settle(job)

    def _look_at_the_clock(self) -> None:
        """Tell those whose servers are late, which nothing else would wake up."""
        now = time.monotonic()
        if self._by_descriptor and now >= self._next_look:
            self._next_look = now + limits.LOOK_SECONDS
            for job in [each for each in self._by_descriptor.values() if each.deadline <= now]:
                self._go_on(job)

    def _settle(self, job: ResidentJob) -> None:
        """Wait for what ``job`` waits for now; forget it if it has ended."""
        wanted = job.waits_for()
        before = job.registered
        if before is not None and (wanted is None or before[0] != wanted[0] or not job.is_same_connection):
            # Its descriptor was closed, which took it out of epoll's list.
            del self._by_descriptor[before[0]]
            before = None
        if wanted is not None:
            descriptor, events = wanted
            if before is None:
                self._epoll.register(descriptor, events)
                self._by_descriptor[descriptor] = job
            elif before != wanted:
                self._epoll.modify(descriptor, events)
        job.registered = wanted
        job.is_same_connection = True
        if job.is_done:
            del self._jobs[job.number]

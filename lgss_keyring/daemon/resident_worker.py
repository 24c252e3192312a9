"""lgssd's end of one resident worker."""

from __future__ import annotations

import socket
import time

from lgss_keyring.daemon import limits
from lgss_keyring.formats import job_messages, worker_messages
from lgss_keyring.system import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Client(Protocol):
        """What a job is for: a request, or a look for dead contexts."""

        is_begun: bool
        """Whether its worker has said anything about it."""

        def received(self, message: bytes) -> None:
            """Take a message from its worker; raises ProtocolError."""

        def worker_ended(self, how: str) -> None:
            """Its worker has ended; ``how`` says why, for people."""

        def moved(self) -> None:
            """Its worker is blocked by another job: this one waits for a worker again."""


MACHINE = -1
"""The owner of the machine's workers; other owners are uids..."""
MACHINE_FOR_USERS = -2
"""...but for this one: the owner of the workers for what ordinary users' processes ask of the machine.  A
user can forge such requests, and let them wait for a name service of their choice: that must not hold up
root's."""


class ClosedError(Exception):
    """The worker has ended, or takes no messages."""


class Worker:
    """One worker.  ``owner`` is its uid, :data:`MACHINE` or :data:`MACHINE_FOR_USERS`."""

    def __init__(self, owner: int, pid: int, connection: socket.socket, page: job_messages.Page) -> None:
        self.owner = owner
        self.pid = pid
        self.connection = connection
        self.page = page
        self.jobs: dict[int, Client] = {}
        self.gid: tuple[int, bool] | None = None
        """The user's gid, and whether it is from passwd(5); None before the worker has begun."""
        self.served = self.messages = 0
        self.started = self.idle_since = time.monotonic()
        self.is_retired = False
        """Whether it gets no more jobs."""
        self.was_blocked = False
        """Whether it was blocked when it was looked at."""
        self.may_get_descriptors = False
        """Whether its user may send lgssd descriptors: kernels before 6.16."""
        self.is_gone = False
        """Whether it was killed, or has closed its connection."""

    def send(self, number: int, message: bytes) -> None:
        """Send a message for the job ``number``; raises ClosedError."""
        try:
            self.connection.send(job_messages.with_number(number, message), socket.MSG_DONTWAIT)
        except OSError as error:
            raise ClosedError(str(error.strerror)) from error

    def receive(self) -> bytes:
        """The next message; empty at the end of the connection, and for one with descriptors.  Raises
        BlockingIOError if there is none."""
        if self.may_get_descriptors:
            flags = self.connection.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)[2]
            if flags & socket.MSG_CTRUNC:
                return b""  # it stays in the queue: to drop it may take long
        longest = worker_messages.TOKEN_LIMIT + limits.HEAD_BYTES
        return self.connection.recv(longest, socket.MSG_DONTWAIT)

    def blocked_for(self) -> float:
        """Seconds that it has not been in its loop; 0 if it waits there for messages."""
        if self.gid is None:
            return time.monotonic() - self.started  # passwd(5) may keep it
        return self.page.look()[0]

    @property
    def is_blocked(self) -> bool:
        """Whether something keeps it.  On a busy machine it may only wait for a processor: another
        worker would wait as well."""
        if self.blocked_for() <= limits.BLOCKED_SECONDS:
            return False
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return processes.state(file.read()) != b"R"
        except OSError:
            return True

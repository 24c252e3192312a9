"""What lgssd and a resident worker say to each other.

A *resident worker* has become one user (or is the machine's) for good, and serves many requests of
that user, several at a time.  A *job* is the work of one worker on one request; if another worker has
to do it, that is a new job.  (A look for dead contexts is a job, too.)  The worker and lgssd share one
SOCK_SEQPACKET pair, and a page of memory (:class:`Page`).  A message is a u32, the number of the job,
and a message of
:mod:`lgss_keyring.formats.worker_messages`, integers in host byte order.  To the worker:

    J  u32 time left in ms, 11 texts with a NUL behind each: realm (-R, empty if not given)
       and the ten arguments of docs/protocol.md 1
                                    a new job
    R, F                            what init_channel gave for the job's token
    D                               drop the job: nobody waits for it any more, or another worker does it
    X                               a new job: take dead contexts out of the user keyring

and from it:

    G  u32 gid, u8 from_passwd      job 0: the first message, while the worker is still root
    S, C, T, E, F                   as in worker_messages; E and F end the job
    X  u32 revoked, u32 expired, u32 orphans, u32 waiting
                                    what was found of dead contexts; ends the job

Before the worker begins the next job it reads all messages that have come, so a D for a job that is not
begun costs nothing.  It sends no S below the configured level of the log: each message costs time.

A user may control their worker.  So lgssd believes a message only as far as
:mod:`lgss_keyring.monitor.worker_process` does, and only for a job that this worker has.
"""

from __future__ import annotations

import os
import struct
import time

from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

JOB_LIMIT = 8192
TEXTS = 11
_HEAD = struct.Struct("=I")
_JOB = struct.Struct("=IcI")
_GROUP = struct.Struct("=IcI?")
_DEAD_KEYS = struct.Struct("=cIIII")
COLLECT = b"X"
"""The message X to the worker."""


class Job(Record):
    """A J message: ``time_left`` in seconds; ``realm`` and ``arguments`` as in
    :func:`lgss_keyring.formats.callout.parse_request`."""

    number: int
    time_left: float
    realm: str | None
    arguments: tuple[str, ...]


def pack_job(number: int, time_left: float, realm: str | None, arguments: Sequence[str]) -> bytes:
    """A J message."""
    texts = [os.fsencode(text) for text in (realm or "", *arguments)]
    return _JOB.pack(number, b"J", max(int(time_left * 1000), 0)) + b"\0".join(texts) + b"\0"


def unpack_job(message: bytes) -> Job:
    """The J message ``message``; raises ValueError or struct.error."""
    number, kind, time_left = _JOB.unpack_from(message)
    *texts, end = message[_JOB.size :].split(b"\0")
    if kind != b"J" or len(texts) != TEXTS or end:
        raise ValueError("not a job")
    realm, *arguments = map(os.fsdecode, texts)
    return Job(number, time_left / 1000, realm or None, tuple(arguments))


def with_number(number: int, message: bytes) -> bytes:
    """``message``, of :mod:`.worker_messages`, for or from job ``number``."""
    return _HEAD.pack(number) + message


def split(message: bytes) -> tuple[int, bytes]:
    """The job's number, and the message without it; raises struct.error."""
    return _HEAD.unpack_from(message)[0], message[_HEAD.size :]


def pack_group(gid: int, from_passwd: bool) -> bytes:
    """The first message of a worker."""
    return _GROUP.pack(0, b"G", gid, from_passwd)


def unpack_group(message: bytes) -> tuple[int, bool] | None:
    """The gid in a worker's first message, and whether it is from passwd(5); None if this is none."""
    if len(message) != _GROUP.size or message[4:5] != b"G":
        return None
    return _GROUP.unpack(message)[2], _GROUP.unpack(message)[3]


class DeadKeys(Record):
    """An X message of a worker: how many contexts were ``revoked``, and ``orphans``, and were taken out of
    the user keyring; how many have ``expired``, which the kernel takes out; and how many seem to be
    orphans, and will be known to be in :data:`lgss_keyring.worker.limits.ORPHAN_SECONDS`."""

    revoked: int
    expired: int
    orphans: int
    waiting: int

    def pack(self) -> bytes:
        """The message without the job's number."""
        return _DEAD_KEYS.pack(COLLECT, self.revoked, self.expired, self.orphans, self.waiting)

    @classmethod
    def unpack(cls, message: bytes) -> DeadKeys:
        """The message without the job's number; raises struct.error."""
        kind, *counts = _DEAD_KEYS.unpack(message)
        if kind != COLLECT:
            raise struct.error("no counts of dead keys")
        return cls(*counts)


class Page:
    """The page that a worker shares with lgssd: what it does, and since when.

    f64 time.monotonic() at which it began what it does, 0 while it waits for messages; u32 job;
    u16 length; the last step's text.  Written by the worker without a lock, and only a hint: a torn
    read, or a lie, can harm nobody but the worker's own user.
    """

    _LAYOUT = struct.Struct("=dIH")
    SIZE = 4096
    TEXT_LIMIT = 500

    def __init__(self, memory: mmap.mmap) -> None:
        """``memory``: :data:`SIZE` bytes, shared and anonymous, made before the fork."""
        self._memory = memory

    def close(self) -> None:
        """Let this process have it no more."""
        self._memory.close()

    def busy(self, job: int) -> None:
        """In the worker: it begins, or goes on with, ``job`` now."""
        self._LAYOUT.pack_into(self._memory, 0, time.monotonic(), job, 0)

    def step(self, text: str) -> None:
        """In the worker: the current job's last step."""
        data = text.encode("utf-8", "replace")[: self.TEXT_LIMIT]
        since, job, _ = self._LAYOUT.unpack_from(self._memory)
        at = self._LAYOUT.size
        self._memory[at : at + len(data)] = data
        self._LAYOUT.pack_into(self._memory, 0, since, job, len(data))

    def idle(self) -> None:
        """In the worker: it waits for messages now."""
        self._LAYOUT.pack_into(self._memory, 0, 0.0, 0, 0)

    def look(self) -> tuple[float, int, str]:
        """In lgssd: seconds that the worker has been busy with what it does (0: it is not), the job,
        and the last step's text."""
        since, job, length = self._LAYOUT.unpack_from(self._memory)
        at = self._LAYOUT.size
        text = self._memory[at : at + min(length, self.TEXT_LIMIT)].decode("utf-8", "replace")
        seconds = time.monotonic() - since if 0 < since <= time.monotonic() else 0.0
        return seconds, job, text

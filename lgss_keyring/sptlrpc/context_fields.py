"""A context's fields, to be read; :mod:`.context` has the methods that change them."""

from __future__ import annotations

import copy
import enum
import errno
import os
import time

from lgss_keyring.formats.errors import GSS_S_CONTEXT_EXPIRED, Kind, LgssError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.flavor import Flavor
    from lgss_keyring.formats.payload import FailurePayload
    from lgss_keyring.sptlrpc.session import Session
    from lgss_keyring.sptlrpc.target import Target

ALL = -1
"""The uid that stands for every user's contexts."""
NO_END = 2**32 - 1
"""The endtime, in seconds since the epoch, of a context that has none: gssnull's."""


class State(enum.Enum):
    """Where a context is in its life."""

    NEW = "new"
    UP_TO_DATE = "up to date"
    DEAD = "dead"
    ERROR = "error"


class ContextError(LgssError):
    """A context cannot be used, or cannot be used any more; ``major`` is GSS_S_NO_CONTEXT or
    GSS_S_CONTEXT_EXPIRED."""

    default_errno = errno.EKEYEXPIRED
    default_major = GSS_S_CONTEXT_EXPIRED
    default_kind = Kind.CONTEXT

    @classmethod
    def of_upcall(cls, uid: int, answer: FailurePayload) -> ContextError:
        """The error of an upcall that has answered with a failure."""
        return cls(
            f"the upcall for uid {uid} failed: {os.strerror(answer.rpc_error)}",
            errno=answer.rpc_error,
            major=answer.gss_major,
            kind=Kind.UPCALL,
            hint="the log of lgss_keyring, or of lgssd, has the cause",
        )


class ContextFields:
    """A context's fields.  Those that never change are plain attributes; the others are
    properties, which only the methods of :class:`.context.Context` set."""

    def __init__(self, target: Target, flavor: Flavor, uid: int, domain: int, flags: str) -> None:
        self.target = target
        self.flavor = flavor
        self.uid = uid
        self.domain = domain
        """The serial of the session keyring whose credentials it is made with, or 0."""
        self.flags = flags
        """Field 4 of callout info (docs/protocol.md 2)."""
        self._reverse = False
        self._state = State.NEW
        self._cached = False
        self._error: LgssError | None = None
        self._endtime = 0
        self._handle = b""
        self._session: Session | None = None
        self._key = 0
        self._keyrings: tuple[int, ...] = ()
        self._references = 0

    @property
    def reverse(self) -> bool:
        """Whether it is a reverse context, which has no key."""
        return self._reverse

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    @property
    def cached(self) -> bool:
        """Whether a look-up may find it."""
        return self._cached

    @property
    def error(self) -> LgssError | None:
        """Why it failed or died; to be raised, take :meth:`fresh_error`."""
        return self._error

    @property
    def endtime(self) -> int:
        """The end of its life, in seconds since the epoch; 0 before its answer."""
        return self._endtime

    @property
    def handle(self) -> bytes:
        """The server's name of it; empty before its answer."""
        return self._handle

    @property
    def session(self) -> Session | None:
        """The session that signs and seals with its keys; None before its answer."""
        return self._session

    @property
    def key(self) -> int:
        """The serial of its key; 0 for a reverse context, and with the pipe policy."""
        return self._key

    @property
    def keyrings(self) -> tuple[int, ...]:
        """The serials of all keyrings that its key was linked to for us."""
        return self._keyrings

    @property
    def references(self) -> int:
        """How many references there are, the cache's among them."""
        return self._references

    def fresh_error(self) -> LgssError:
        """A copy of the error, to be raised.  An object that is raised again and again would collect a
        traceback each time, with all that its frames hold."""
        assert self._error is not None
        error = copy.copy(self._error)
        error.__cause__ = self._error.__cause__
        return error

    def _describe(self, backing: str) -> str:
        left = f", {self._endtime - int(time.time())} s left" if self._state is State.UP_TO_DATE else ""
        cached = ", cached" if self._cached else ""
        error = f" ({self._error.reason})" if self._error else ""
        return (
            f"uid {self.uid}, {self.flavor}: {self._state.value}{cached}{left}{error}, "
            f"{self._references} references, {backing}"
        )

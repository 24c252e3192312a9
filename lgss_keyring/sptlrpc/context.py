"""A client's security context (docs/design-2008.md 5.2.2): what a key of the kernel is for.

Its life: *new* until the upcall has answered, then *up to date* or *error*; *dead* when
its time is over or somebody said so.  Beside that it is *cached* as long as a look-up may
find it: for that the cache holds a reference of its own (the design's "base" reference),
dropped as soon as the context is no longer usable.
"""

from __future__ import annotations

import copy
import enum
import errno
import math
import os
import threading
import time
from concurrent.futures import Future

from lgss_keyring.formats import payload
from lgss_keyring.formats.errors import GSS_S_CONTEXT_EXPIRED, GSS_S_NO_CONTEXT, Kind, LgssError
from lgss_keyring.formats.payload import Krb5Context
from lgss_keyring.sptlrpc.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.crypto.tokens import Bytes
    from lgss_keyring.sptlrpc.sec import SecurityObject

GSSNULL_END = 2**32 - 1


class State(enum.Enum):
    """Where a context is in its life."""

    NEW = "new"
    UP_TO_DATE = "up to date"
    DEAD = "dead"
    ERROR = "error"


class ContextError(LgssError):
    """A context that cannot be used (any more); ``major`` GSS_S_NO_CONTEXT or
    GSS_S_CONTEXT_EXPIRED."""

    default_errno = errno.EKEYEXPIRED
    default_major = GSS_S_CONTEXT_EXPIRED
    default_kind = Kind.CONTEXT


class Context:
    """Made by a :class:`~lgss_keyring.sptlrpc.sec.SecurityObject`, one for each user.

    A context manager that releases.  Safe between threads.
    """

    def __init__(self, sec: SecurityObject, uid: int, domain: int = 0, reverse: bool = False) -> None:
        """``domain``: the serial of the session keyring whose credentials it is of, 0 for
        the user's own."""
        self.sec = sec
        self.uid = uid
        self.domain = domain
        self.reverse = reverse
        self.state = State.NEW
        self.cached = False
        self.error: LgssError | None = None
        self.endtime = 0
        """Seconds since the epoch."""
        self._until = GSSNULL_END
        """The end of a grace that began before there was an answer."""
        self.handle = b""
        self.session: Session | None = None
        self.key = 0
        """The serial of its key; 0 for a reverse context, and with the pipe policy."""
        self.keyrings: tuple[int, ...] = ()
        """The serials of all keyrings that the key was linked to for us."""
        self.started = threading.Event()
        """The key is instantiated (or never will be)."""
        self.requested = threading.Event()
        """No request for its key is under way (any more)."""
        self.retired = threading.Event()
        """It has left the cache, and its key is out of the way."""
        self._answered = threading.Event()
        self._waiting: list[Future[Context]] = []
        self._references = 0
        self._lock = threading.Lock()

    # References.

    @property
    def references(self) -> int:
        """How many hold it, the cache included."""
        return self._references

    def get(self) -> Context:
        """Take a reference."""
        with self._lock:
            self._references += 1
        return self

    def put(self) -> None:
        """Drop a reference; with the last one the context and its key are destroyed."""
        with self._lock:
            self._references -= 1
            last = self._references == 0
        if last:
            self.sec.policy.destroy(self)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.sec.release_ctx(self)

    # Its life.

    def match(self, uid: int, domain: int = 0) -> bool:
        """Whether it is usable for ``uid``, its key included."""
        return (self.uid, self.domain) == (uid, domain) and self.validate()

    def validate(self) -> bool:
        """Whether it can be used, or will be when its upcall has answered."""
        if self.state is State.UP_TO_DATE and time.time() >= self.endtime:
            self._die("its time is over", errno.EKEYEXPIRED)
        if self.state in (State.NEW, State.UP_TO_DATE) and self.key and self.cached:
            number = self.sec.policy.check(self)
            if number:
                self._die(f"its key answers {os.strerror(number)}", number)
        return self.state in (State.NEW, State.UP_TO_DATE)

    def refresh(self, timeout: float | None = None) -> Context:
        """Wait until the upcall has answered, at most ``timeout`` seconds.

        Raises the upcall's error (LgssError), or with ETIMEDOUT if this very wait was too
        long; the upcall goes on then.
        """
        if not self._answered.wait(timeout):
            raise ContextError(
                f"no answer for uid {self.uid} within {timeout} s",
                errno=errno.ETIMEDOUT,
                major=GSS_S_NO_CONTEXT,
            )
        if self.error is not None:
            raise self.fresh_error()
        return self

    def refresh_later(self) -> Future[Context]:
        """The same without waiting: a future of this context, or of its error."""
        future: Future[Context] = Future()
        with self._lock:
            if not self._answered.is_set():
                self._waiting.append(future)
                return future
        self._tell(future)
        return future

    def die(self, grace: float = 0) -> None:
        """Make it unusable, after ``grace`` seconds (rounded up) for those who hold it;
        look-ups do not find it from now on.

        One that is new is still found, with ``grace``, until it has its answer: a key that
        was got out of the way before would never have one.
        """
        if grace <= 0:
            self._die("it was ended", errno.EKEYREVOKED)
            return
        end = math.ceil(time.time() + grace)
        with self._lock:
            self._until = min(self._until, end)
            if self.state is State.NEW:
                return
            self.endtime = min(self.endtime, end)
        self.sec.uncache(self)

    def _die(self, why: str, number: int) -> None:
        with self._lock:
            if self.state is State.DEAD:
                return
            self.state = State.DEAD
            if self.error is None:
                self.error = ContextError(f"the context of uid {self.uid} is dead: {why}", errno=number)
        self._end()

    # What the policies call.

    def take(self, answer: payload.ContextPayload | payload.FailurePayload) -> None:
        """Take the upcall's answer; raises PayloadError for a context that is none."""
        if isinstance(answer, payload.ContextPayload):
            self.established(answer)
            return
        self.failed(
            ContextError(
                f"the upcall for uid {self.uid} failed: {os.strerror(answer.rpc_error)}",
                errno=answer.rpc_error,
                major=answer.gss_major,
                kind=Kind.UPCALL,
                hint="the log of lgss_keyring, or of lgssd, has the cause",
            )
        )

    def established(self, answer: payload.ContextPayload) -> None:
        """Take the upcall's context; raises PayloadError for one that is none."""
        flavor = self.sec.flavor
        krb5 = Krb5Context.unpack(answer.context) if flavor.mechanism == "krb5" else None
        with self._lock:
            if self.state is not State.NEW:
                return
            self.session = Session(krb5, flavor, answer.seq_win)
            self.handle = answer.handle
            self.endtime = min(krb5.endtime if krb5 else GSSNULL_END, self._until)
            self.state = State.UP_TO_DATE
            flushed = self._until < GSSNULL_END
        if flushed:
            self.sec.uncache(self)
        self._wake()

    def failed(self, error: LgssError) -> None:
        """Take the upcall's failure."""
        with self._lock:
            if self.state is not State.NEW:
                return
            self.error, self.state = error, State.ERROR
        self._end()

    def _end(self) -> None:
        # Out of the cache before anybody is told: who is called back by a future may look
        # up again, in this very thread.
        try:
            self.sec.uncache(self)
        finally:
            self._wake()

    def _wake(self) -> None:
        self.started.set()
        with self._lock:
            self._answered.set()
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            self._tell(future)

    def _tell(self, future: Future[Context]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if self.error is not None:
            future.set_exception(self.fresh_error())
        else:
            future.set_result(self)

    def fresh_error(self) -> LgssError:
        """The error, to be raised: the same object raised again and again would collect a
        traceback of each time, with all that its frames hold."""
        assert self.error is not None
        error = copy.copy(self.error)
        error.__cause__ = self.error.__cause__
        return error

    # Messages: see Session.

    def _usable(self) -> Session:
        if self.session is None or self.state is not State.UP_TO_DATE or time.time() >= self.endtime:
            self.validate()
            if self.error is not None:
                raise self.fresh_error()
            raise ContextError(
                f"the context of uid {self.uid} is {self.state.value}: refresh it first",
                errno=errno.EAGAIN,
                major=GSS_S_NO_CONTEXT,
            )
        return self.session

    def overhead(self) -> int:
        """At most how many bytes its tokens add to a message of any size."""
        return self._usable().overhead()

    def sign(self, pieces: Sequence[Bytes]) -> bytes:
        """:meth:`.session.Session.sign`; raises ContextError, as all of these do."""
        return self._usable().sign(pieces)

    def verify(self, pieces: Sequence[Bytes], token: bytes) -> None:
        """:meth:`.session.Session.verify`."""
        self._usable().verify(pieces, token)

    def seal(self, header: bytes, message: Bytes) -> bytes:
        """:meth:`.session.Session.seal`."""
        return self._usable().seal(header, message)

    def unseal(self, header: bytes, token: Bytes, length: int | None = None) -> bytes:
        """:meth:`.session.Session.unseal`."""
        return self._usable().unseal(header, token, length)

    def wrap_bulk(self, pages: Sequence[Bytes]) -> tuple[bytes, list[bytes]]:
        """:meth:`.session.Session.wrap_bulk`."""
        return self._usable().wrap_bulk(pages)

    def unwrap_bulk(self, token: bytes, sealed: Sequence[Bytes], lengths: Sequence[int]) -> list[bytes]:
        """:meth:`.session.Session.unwrap_bulk`."""
        return self._usable().unwrap_bulk(token, sealed, lengths)

    def display(self) -> str:
        """One line for people, key information included, no secret."""
        left = f", {self.endtime - int(time.time())} s left" if self.state is State.UP_TO_DATE else ""
        what = f"reverse of handle {self.handle.hex()}" if self.reverse else self.sec.policy.display(self)
        cached = ", cached" if self.cached else ""
        error = f" ({self.error.reason})" if self.error else ""
        return (
            f"uid {self.uid}, {self.sec.flavor}: {self.state.value}{cached}{left}{error}, "
            f"{self._references} references, {what}"
        )

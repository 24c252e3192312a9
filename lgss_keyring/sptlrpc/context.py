"""A client's security context (docs/design-2008.md 5.2.2), and the states of its life.

docs/sptlrpc.md, "The life of a context", has the diagram of the states, the method for each
transition, and which thread may call it.  Nobody else changes a context's fields.

The two protocols below list all that a context calls of the security object that made it, and
of its policy.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from abc import abstractmethod
from concurrent.futures import Future
from typing import Protocol

from lgss_keyring.formats.errors import GSS_S_NO_CONTEXT, LgssError
from lgss_keyring.formats.payload import ContextPayload, FailurePayload, Krb5Context
from lgss_keyring.sptlrpc.context_fields import ALL, NO_END, ContextError, ContextFields, State
from lgss_keyring.sptlrpc.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.crypto.tokens import Bytes
    from lgss_keyring.formats.flavor import Flavor
    from lgss_keyring.sptlrpc.target import Target


class Backing(Protocol):
    """What a context calls of its policy, which owns the key or request behind it."""

    @abstractmethod
    def check(self, context: Context) -> int:
        """0 while the key behind ``context`` is good, else an errno."""

    @abstractmethod
    def destroy(self, context: Context) -> None:
        """``context`` has lost its last reference."""

    @abstractmethod
    def display(self, context: Context) -> str:
        """The key or request behind ``context``, for people."""


class Owner(Protocol):
    """What a context reads and calls of the security object that made it."""

    @property
    def policy(self) -> Backing:
        """What stands behind its contexts."""

    @property
    def target(self) -> Target:
        """The server."""

    @property
    def flavor(self) -> Flavor:
        """Mechanism and protection."""

    @property
    def root_flags(self) -> str:
        """The flags of callout info for uid 0."""

    def uncache(self, context: Context) -> None:
        """Let no look-up find ``context`` any more, and end its key, if it is cached."""


class Context(ContextFields):
    """The context of one user with one target, made by a security object.

    A context manager that gives its reference back.  Safe between threads.
    """

    def __init__(self, owner: Owner, uid: int, domain: int = 0) -> None:
        """A new context of ``uid``.  ``domain`` is the serial of the session keyring whose
        credentials it is made with, 0 for the user's own credentials."""
        super().__init__(owner.target, owner.flavor, uid, domain, "" if uid else owner.root_flags)
        self._owner = owner
        # The end that end_by() has set while there was no answer yet.
        self._latest_end = NO_END
        self._started = threading.Event()
        self._answered = threading.Event()
        self._retired = threading.Event()
        self._futures: list[Future[Context]] = []
        self._lock = threading.Lock()

    @classmethod
    def reverse_of(cls, owner: Owner, server: Session, handle: bytes, endtime: int) -> Context:
        """A reverse context, for calls to the client of a server's context ``server``.

        It is up to date at once, is of no user, is bound to no key and is never cached.
        ``endtime`` is in seconds since the epoch.
        """
        context = cls(owner, ALL)
        context._reverse = True
        context._session, context._handle, context._endtime = server.reversed(), handle, endtime
        context._state = State.UP_TO_DATE
        context._wake()
        return context

    # References.

    def get(self) -> Context:
        """Take a reference."""
        with self._lock:
            self._references += 1
        return self

    def put(self) -> None:
        """Drop a reference; with the last one the context is destroyed."""
        with self._lock:
            self._references -= 1
            last = self._references == 0
        if last:
            self._owner.policy.destroy(self)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.put()

    # For callers of the library, in any thread.

    def match(self, uid: int, domain: int = 0) -> bool:
        """Whether it is ``uid``'s in that domain, and usable, its key included."""
        return (self.uid, self.domain) == (uid, domain) and self.validate()

    def validate(self) -> bool:
        """Whether it can be used now, or is new and may still get its answer.  One whose time
        is over, or whose key has gone, is dead afterwards."""
        if self._state is State.UP_TO_DATE and time.time() >= self._endtime:
            self._die("its time is over", errno.EKEYEXPIRED)
        if self._state in (State.NEW, State.UP_TO_DATE) and self._key and self._cached:
            number = self._owner.policy.check(self)
            if number:
                self._die(f"its key answers {os.strerror(number)}", number)
        return self._state in (State.NEW, State.UP_TO_DATE)

    def refresh(self, timeout: float | None = None) -> Context:
        """Wait until the upcall has answered, at most ``timeout`` seconds.

        Raises the upcall's error (LgssError).  Raises ContextError with ETIMEDOUT after ``timeout``;
        the upcall goes on then.
        """
        if not self._answered.wait(timeout):
            raise ContextError(
                f"no answer for uid {self.uid} within {timeout} s",
                errno=errno.ETIMEDOUT,
                major=GSS_S_NO_CONTEXT,
            )
        if self._error is not None:
            raise self.fresh_error()
        return self

    def refresh_later(self) -> Future[Context]:
        """As :meth:`refresh` without waiting: a future of this context, or of its error.
        Its callbacks run in the thread that brings the answer."""
        future: Future[Context] = Future()
        with self._lock:
            if not self._answered.is_set():
                self._futures.append(future)
                return future
        self._resolve(future)
        return future

    def die(self, grace: float = 0) -> None:
        """Make it unusable; look-ups do not find it from now on.  With ``grace`` it can be
        used for so many seconds more (rounded up) by those who hold it.

        With grace, a new one is still found until it has its answer: if its key were ended
        before, there would never be an answer.
        """
        if grace <= 0:
            self._die("it was ended", errno.EKEYREVOKED)
        elif self.end_by(math.ceil(time.time() + grace)):
            self._owner.uncache(self)

    def end_by(self, endtime: int) -> bool:
        """Let its life end at ``endtime`` (seconds since the epoch), if it would be longer.
        Returns False for a new one, to which this applies once it has its answer."""
        with self._lock:
            self._latest_end = min(self._latest_end, endtime)
            if self._state is State.NEW:
                return False
            self._endtime = min(self._endtime, endtime)
            return True

    # For the security object.

    def enter_cache(self) -> None:
        """Note that look-ups may find it; the cache takes a reference, the paper's "base"
        reference."""
        with self._lock:
            self._cached = True
            self._references += 1

    def leave_cache(self) -> bool:
        """Note that look-ups must not take it any more.  Returns True to one caller only, which has
        to end its key and then call :meth:`retired`."""
        with self._lock:
            left, self._cached = self._cached, False
        return left

    def retired(self) -> None:
        """Note that its key's name and its place in the cache are free again.  Look-ups that wait
        for that go on, and the cache's reference is dropped."""
        self._retired.set()
        self.put()

    def wait_retired(self) -> None:
        """Wait until :meth:`retired` was called."""
        self._retired.wait()

    # For the policy.

    def instantiated(self, key: int = 0, keyrings: tuple[int, ...] = ()) -> None:
        """Note that the request is made, so that look-ups go on.  ``key`` is the serial of its
        instantiated key, which is kept even if the context has failed meanwhile, and
        ``keyrings`` are the serials of the keyrings that it is linked to."""
        with self._lock:
            self._key, self._keyrings = key, keyrings
            new = self._state is State.NEW
        if new:
            self._started.set()

    def wait_started(self, timeout: float | None = None) -> bool:
        """Wait until it is instantiated, has its answer or has failed, at most ``timeout``
        seconds; returns False after that time."""
        return self._started.wait(timeout)

    def take(self, answer: ContextPayload | FailurePayload) -> None:
        """Take the upcall's answer; raises PayloadError for a malformed context."""
        if isinstance(answer, ContextPayload):
            self.established(answer)
        else:
            self.failed(ContextError.of_upcall(self.uid, answer))

    def established(self, answer: ContextPayload) -> None:
        """From new to up to date, with the upcall's context.  Does nothing in another state.
        Raises PayloadError for a malformed context."""
        krb5 = Krb5Context.unpack(answer.context) if self.flavor.mechanism == "krb5" else None
        with self._lock:
            if self._state is not State.NEW:
                return
            self._session = Session(krb5, self.flavor, answer.seq_win)
            self._handle = answer.handle
            self._endtime = min(krb5.endtime if krb5 else NO_END, self._latest_end)
            self._state = State.UP_TO_DATE
            flushed = self._latest_end < NO_END
        if flushed:
            self._owner.uncache(self)
        self._wake()

    def failed(self, error: LgssError) -> None:
        """From new to error.  Does nothing in another state."""
        with self._lock:
            if self._state is not State.NEW:
                return
            self._error, self._state = error, State.ERROR
        self._end()

    # Common parts of the transitions.

    def _die(self, reason: str, number: int) -> None:
        with self._lock:
            if self._state is State.DEAD:
                return
            self._state = State.DEAD
            if self._error is None:
                self._error = ContextError(f"the context of uid {self.uid} is dead: {reason}", errno=number)
        self._end()

    def _end(self) -> None:
        # It leaves the cache before anybody is woken, because a future's callback may look up a
        # context again, in this same thread.
        try:
            self._owner.uncache(self)
        finally:
            self._wake()

    def _wake(self) -> None:
        self._started.set()
        with self._lock:
            self._answered.set()
            futures, self._futures = self._futures, []
        for future in futures:
            self._resolve(future)

    def _resolve(self, future: Future[Context]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if self._error is not None:
            future.set_exception(self.fresh_error())
        else:
            future.set_result(self)

    # Messages: see Session.

    def _usable(self) -> Session:
        if self._session is None or self._state is not State.UP_TO_DATE or time.time() >= self._endtime:
            self.validate()
            if self._error is not None:
                raise self.fresh_error()
            raise ContextError(
                f"the context of uid {self.uid} is {self._state.value}: refresh it first",
                errno=errno.EAGAIN,
                major=GSS_S_NO_CONTEXT,
            )
        return self._session

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
        """One line for people, with its key but without any secret."""
        if self._reverse:
            return self._describe(f"reverse of handle {self._handle.hex()}")
        return self._describe(self._owner.policy.display(self))

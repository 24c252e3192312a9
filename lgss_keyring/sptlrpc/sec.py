"""The security object of one import (docs/design-2008.md 5.2.1): its contexts and its buffers.

An import is a client's side of one target.  All contexts are linked here, because a keyring
cannot be gone through.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from abc import abstractmethod
from typing import Protocol

from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.sptlrpc.buffers import Buffer
from lgss_keyring.sptlrpc.context import Backing, Context
from lgss_keyring.sptlrpc.context_fields import ALL, State
from lgss_keyring.sptlrpc.limits import REVERSE_GRACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.flavor import Flavor
    from lgss_keyring.sptlrpc.session import Session
    from lgss_keyring.sptlrpc.target import Target


class ContextSource(Backing, Protocol):
    """What a security object calls of its policy, beside what its contexts call."""

    name: str

    @abstractmethod
    def domain(self, sec: SecurityObject, uid: int) -> int:
        """The serial of the calling process's session keyring if ``sec``'s contexts of ``uid``
        are made with credentials that are there, which no other session may share; else 0."""

    @abstractmethod
    def start(self, context: Context) -> None:
        """Ask for ``context``.  Returns when the request is made (``context.instantiated``); raises
        LgssError if it cannot be made.  Later calls ``context.established`` or
        ``context.failed``, once."""

    @abstractmethod
    def retire(self, context: Context) -> None:
        """End what stands behind ``context``, which is leaving the cache."""


class SecurityObject:
    """Made by :meth:`.policy.Policy.create_sec`; a context manager that destroys."""

    def __init__(self, policy: ContextSource, target: Target, flavor: Flavor, root_flags: str) -> None:
        self.policy = policy
        self.target = target
        self.flavor = flavor
        self.root_flags = root_flags
        self.contexts: dict[tuple[int, int], Context] = {}
        """The cached ones, by uid and domain."""
        self._reverse: list[Context] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> SecurityObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy_sec()

    def destroy_sec(self) -> None:
        """End all contexts, and let none be made any more."""
        self._ended.set()
        self.flush_ctx_cache(ALL, force=True)
        with self._lock:
            reverse, self._reverse = self._reverse, []
        for context in reverse:
            context.die()
            context.put()

    # Contexts.

    def lookup_ctx(self, uid: int | None = None) -> Context:
        """The context of ``uid`` (default: this process's effective one), with a reference
        for the caller, who gives it back by :meth:`release_ctx`.

        Returns as soon as its key is instantiated: the context may be *new* still, and
        :meth:`.context.Context.refresh` waits for the rest.  Raises LgssError: no
        request-key rule, a refusal by the handler, or ETIMEDOUT of request_key(2) itself.
        """
        uid = os.geteuid() if uid is None else uid
        domain = self.policy.domain(self, uid)
        while True:
            context, made = self._find_or_make(uid, domain)
            if made:
                self._start(context)
                return context
            usable = False
            try:
                usable = self._join(context)
            finally:
                if not usable:
                    context.put()
            if usable:
                return context

    def _find_or_make(self, uid: int, domain: int) -> tuple[Context, bool]:
        """The cached context, with a reference for the caller, and whether it was made now."""
        with self._lock:
            context = self.contexts.get((uid, domain))
            made = context is None
            if context is None:
                if self._ended.is_set():
                    raise _destroyed()
                context = self.contexts[uid, domain] = Context(self, uid, domain)
                context.enter_cache()
            return context.get(), made

    def _start(self, context: Context) -> None:
        """Make the request for a context that was made now."""
        try:
            self.policy.start(context)
        except BaseException as error:
            # After any error, because others may wait for this context already. If the policy has
            # let the context fail itself, this changes nothing.
            known = error if isinstance(error, LgssError) else None
            context.failed(known or LgssError(f"{type(error).__name__}: {error}"))
            context.put()
            raise

    def _join(self, context: Context) -> bool:
        """Wait until another thread has made the request for ``context``.  Returns False if
        the context has left the cache, and another look-up will make a new one; raises the
        context's error."""
        if not context.cached:
            context.wait_retired()
            return False
        if not context.validate():
            self.uncache(context)
            return False
        context.wait_started()
        if context.state is State.ERROR:
            raise context.fresh_error()
        return True

    def release_ctx(self, context: Context) -> None:
        """Give a reference of :meth:`lookup_ctx` back; the last one destroys."""
        context.put()

    def uncache(self, context: Context) -> None:
        """Let no look-up find ``context`` any more, and drop the cache's reference.

        Its key is ended before its place here is free.  In the other order a look-up in between
        would find the key by its name, and would lose it when the key is ended.
        """
        if not context.leave_cache():
            return
        try:
            self.policy.retire(context)
        finally:
            with self._lock:
                if self.contexts.get((context.uid, context.domain)) is context:
                    del self.contexts[context.uid, context.domain]
            context.retired()

    def flush_ctx_cache(self, uid: int = ALL, grace: float = 0, force: bool = False) -> int:
        """End the contexts of ``uid``, or of all users; returns how many.

        Contexts that nobody uses end at once.  Those in use live on for ``grace`` seconds if
        that is not 0; else ``force`` ends them, too, and without it they are left alone.
        """
        with self._lock:
            found = [context.get() for context in self.contexts.values() if uid in (ALL, context.uid)]
        flushed = 0
        for context in found:
            # The cache's reference and ours make two.
            unused = context.references <= 2
            if unused or force or grace:
                context.die(0 if unused else grace)
                flushed += 1
            context.put()
        return flushed

    def gc(self) -> int:
        """Drop what is dead: expired contexts, those whose key is expired or revoked, old
        reverse contexts.  Returns how many."""
        with self._lock:
            found = [context.get() for context in self.contexts.values()]
        dead = sum(not context.validate() for context in found)
        for context in found:
            context.put()
        now = time.time()
        with self._lock:
            old = [context for context in self._reverse if context.endtime <= now]
            self._reverse = [context for context in self._reverse if context.endtime > now]
        for context in old:
            context.die()
            context.put()
        return dead + len(old)

    def sweep_every(self, seconds: float) -> None:
        """Call :meth:`gc` every so many seconds, in a thread, until this object is destroyed.

        The kernel tells nobody that a key has expired (docs/design-2008.md 5.6).  Without
        this a context that nobody looks up stays until its security object is destroyed.
        """

        def sweep() -> None:
            while not self._ended.wait(seconds):
                self.gc()

        threading.Thread(target=sweep, daemon=True).start()

    # Reverse contexts.

    def install_rctx(self, server: Session, handle: bytes, endtime: int) -> Context:
        """A reverse context, for calls to the client of a server's context ``server``, with a
        reference for the caller.

        It is bound to no key.  ``endtime`` is in seconds since the epoch.  Those installed
        before live for :data:`REVERSE_GRACE` seconds more.
        """
        if self._ended.is_set():
            raise _destroyed()
        context = Context.reverse_of(self, server, handle, endtime)
        soon = int(time.time() + REVERSE_GRACE)
        with self._lock:
            for older in self._reverse:
                older.end_by(soon)
            self._reverse.append(context.get())
        self.gc()
        return context.get()

    def reverse_ctx(self) -> Context | None:
        """The newest reverse context, with a reference for the caller; None if there is
        none that can be used."""
        with self._lock:
            newest = self._reverse[-1] if self._reverse else None
            return newest.get() if newest and newest.endtime > time.time() else None

    def display(self) -> str:
        """Lines for people: this object and each of its contexts."""
        target = self.target
        lines = [
            f"{self.policy.name} {self.flavor} to {target.obd_name}@0x{target.nid:x}, "
            f"connection {target.connection}"
        ]
        with self._lock:
            contexts = [*self.contexts.values(), *self._reverse]
        return "\n".join([*lines, *(f"  {context.display()}" for context in contexts)])

    # Buffers.

    def alloc_reqbuf(self, size: int, context: Context) -> Buffer:
        """A buffer for a request of ``size`` bytes and the token that ``context`` adds, or for the
        sealed request if the flavor encrypts.  Raises ContextError for a context that is not up
        to date, because the size of its tokens is not known before."""
        return Buffer(size, context.overhead())

    def alloc_repbuf(self, size: int, context: Context) -> Buffer:
        """A buffer for a reply of at most ``size`` bytes with its token; raises as
        :meth:`alloc_reqbuf`."""
        return Buffer(size, context.overhead())

    def enlarge_reqbuf(self, buffer: Buffer, size: int) -> None:
        """Let ``buffer`` hold a request of ``size`` bytes; the bytes that are there stay."""
        buffer.enlarge(size)

    def free_reqbuf(self, buffer: Buffer) -> None:
        """Give a request's buffer back."""
        buffer.free()

    def free_repbuf(self, buffer: Buffer) -> None:
        """Give a reply's buffer back."""
        buffer.free()


def _destroyed() -> LgssError:
    return LgssError("the security object is destroyed", errno=errno.ESHUTDOWN, kind=Kind.CONTEXT)

"""The security object of one import (docs/design-2008.md 5.2.1): its contexts, and what they protect.

An import is a client's side of one target.  All contexts are linked here, so that they can
be gone through: a keyring cannot be.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.flavor import Flavor
from lgss_keyring.formats.record import Record
from lgss_keyring.sptlrpc.buffers import Buffer
from lgss_keyring.sptlrpc.context import Context, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.sptlrpc.policy import Policy
    from lgss_keyring.sptlrpc.session import Session

ALL = -1
"""The uid that stands for every user's contexts."""
REVERSE_GRACE = 30.0
"""Seconds that a reverse context lives on after a newer one has come."""


def _destroyed() -> LgssError:
    return LgssError("the security object is destroyed", errno=errno.ESHUTDOWN, kind=Kind.CONTEXT)


class Target(Record):
    """Whom contexts are negotiated with; fields as in callout info (docs/protocol.md 2).

    ``connection`` counts the connections made to it: with each, keys are other keys.
    """

    nid: int
    service: int
    obd_name: str
    self_nid: int = 0
    client_uuid: str = "client"
    connection: int = 0


class SecurityObject:
    """Made by :meth:`.policy.Policy.create_sec`; a context manager that destroys."""

    def __init__(self, policy: Policy, target: Target, flavor: Flavor, root_flags: str) -> None:
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
        for the caller, who releases it.

        Returns as soon as its key is instantiated: the context may be *new* still, and
        :meth:`.context.Context.refresh` waits for the rest.  Raises LgssError: no rule, a
        refusal by the handler, or ETIMEDOUT of request_key(2) itself.
        """
        uid = os.geteuid() if uid is None else uid
        domain = self.policy.domain(self, uid)
        name = (uid, domain)
        while True:
            fresh = False
            with self._lock:
                context = self.contexts.get(name)
                if context is None:
                    if self._ended.is_set():
                        raise _destroyed()
                    context = self.contexts[name] = Context(self, uid, domain).get()
                    context.cached = fresh = True
                context.get()
            if fresh:
                try:
                    self.policy.start(context)
                except BaseException as error:
                    # Whatever it was: nobody else may wait for this one. Nothing to do where
                    # the policy has failed it itself.
                    known = error if isinstance(error, LgssError) else None
                    context.failed(known or LgssError(f"{type(error).__name__}: {error}"))
                    context.put()
                    raise
                return context
            if not context.cached:
                context.retired.wait()
            elif context.validate():
                context.started.wait()
                if context.state is not State.ERROR:
                    return context
                failure = context.fresh_error()
                context.put()
                raise failure
            else:
                self.uncache(context)  # or whoever found it unusable is about to
            context.put()

    def release_ctx(self, context: Context) -> None:
        """Give a reference of :meth:`lookup_ctx` back; the last one destroys."""
        context.put()

    def uncache(self, context: Context) -> None:
        """Let no look-up find ``context`` any more, and drop the cache's reference.

        First its key goes, then its place here: a look-up in between would find the key
        by its name, and lose it to this one's end.
        """
        with self._lock:
            if not context.cached:
                return
            context.cached = False
        try:
            self.policy.retire(context)
        finally:
            with self._lock:
                if self.contexts.get((context.uid, context.domain)) is context:
                    del self.contexts[context.uid, context.domain]
            context.retired.set()
            context.put()

    def flush_ctx_cache(self, uid: int = ALL, grace: float = 0, force: bool = False) -> int:
        """End the contexts of ``uid``, or all.  Those in use live on for ``grace`` seconds,
        if that is not 0; else ``force`` ends them, too, and without it they are left alone.
        Gives how many went."""
        with self._lock:
            found = [c.get() for c in self.contexts.values() if uid in (ALL, c.uid)]
        flushed = 0
        for context in found:
            # Ours and the cache's are two.
            unused = context.references <= 2
            if unused or force or grace:
                context.die(0 if unused else grace)
                flushed += 1
            context.put()
        return flushed

    def gc(self) -> int:
        """Drop what is dead: expired contexts, expired or revoked keys, old reverse
        contexts.  Gives how many."""
        with self._lock:
            found = [c.get() for c in self.contexts.values()]
        dead = sum(not context.validate() for context in found)
        for context in found:
            context.put()
        now = time.time()
        with self._lock:
            old = [c for c in self._reverse if c.endtime <= now]
            self._reverse = [c for c in self._reverse if c.endtime > now]
        for context in old:
            context.die()
            context.put()
        return dead + len(old)

    def sweep_every(self, seconds: float) -> None:
        """Call :meth:`gc` every so often, in a thread, until this object is destroyed.

        The kernel tells nobody that a key has expired (5.6); without this a context that
        nobody looks up stays until its security object goes.
        """

        def sweep() -> None:
            while not self._ended.wait(seconds):
                self.gc()

        threading.Thread(target=sweep, daemon=True).start()

    def install_rctx(self, server: Session, handle: bytes, endtime: int) -> Context:
        """A reverse context, for calls to the client of a server's context ``server``.

        It is bound to no key.  Those installed before live for :data:`REVERSE_GRACE`
        seconds more.  The caller has a reference.
        """
        if self._ended.is_set():
            raise _destroyed()
        context = Context(self, ALL, reverse=True)
        context.session = server.reversed()
        context.handle = handle
        context.endtime = endtime
        context.state = State.UP_TO_DATE
        context._wake()
        soon = int(time.time() + REVERSE_GRACE)
        with self._lock:
            for older in self._reverse:
                older.endtime = min(older.endtime, soon)
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
            all_of_them = [*self.contexts.values(), *self._reverse]
        return "\n".join([*lines, *(f"  {context.display()}" for context in all_of_them)])

    # Buffers.

    def alloc_reqbuf(self, size: int, context: Context) -> Buffer:
        """A buffer for a request of ``size`` bytes and the token that ``context`` adds, or,
        where it seals, for what it becomes.  Raises ContextError for one that is not up to
        date: what its tokens need is not known before."""
        return self._buffer(size, context)

    def alloc_repbuf(self, size: int, context: Context) -> Buffer:
        """A buffer for a reply of at most ``size`` bytes with its token."""
        return self._buffer(size, context)

    def _buffer(self, size: int, context: Context) -> Buffer:
        return Buffer(size, context.overhead())

    def enlarge_reqbuf(self, buffer: Buffer, size: int) -> None:
        """Let ``buffer`` hold a request of ``size`` bytes, what is there kept."""
        buffer.enlarge(size)

    def free_reqbuf(self, buffer: Buffer) -> None:
        """Give a request's buffer back."""
        buffer.free()

    def free_repbuf(self, buffer: Buffer) -> None:
        """Give a reply's buffer back."""
        buffer.free()

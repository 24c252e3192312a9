"""The keyring policy: a context for each key, made by an upcall (docs/design-2008.md 4, 5.1 to 5.8).

How the pieces of the design are done with what user space has:

- *Every process of root, and of a user, shares one key for a target* (5.7), whatever session
  keyring it is in: the key is linked into the user keyring (@u), and @u is linked into the
  thread keyring where the request is made.  That is a thread of its own for each request: a
  thread keyring belongs to its thread, so the caller's keyrings are never touched and
  nothing has to be restored.  Linking @u into the caller's own @t and out again would leave
  an empty thread keyring behind.  Where nothing of the session's is needed (the machine's
  contexts, and those for others) that thread also joins a session keyring of its own, the
  design's way: root's may be that of the user who called su(1), and be full of his keys.
- *No key of another user's is taken*, wherever it is found.
- *A session with credentials of its own* (3.2, NRL) has its own keys: linked into that session
  keyring only, with its serial in their names.
- *The caller goes on when the key is instantiated* (5.3), and the same thread then waits for
  the update, looking with growing pauses, as common kernels do not notify.
- *request_key(2) itself may hang* (5.4): the caller waits for that thread, for a limited time.
- *Nothing is unlinked by name* (5.8): keyctl_unlink goes by type and description and may hit a
  successor.  A key goes by keyctl_invalidate, which goes by serial: it takes all links of
  that very key along, and frees its name at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time

from lgss_keyring.formats import payload
from lgss_keyring.formats.callout import format_callout
from lgss_keyring.formats.errors import KeyOperationError, Kind, LgssError
from lgss_keyring.sptlrpc.context import Context, ContextError, State
from lgss_keyring.sptlrpc.policy import Policy, group_of
from lgss_keyring.system import keyrings, keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.sptlrpc.sec import SecurityObject

PLACEHOLDER = b"\0"
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
# How long a name is waited for whose last key was invalidated: a millisecond, mostly.
BLOCKED_SECONDS = 2.0
# Some times what another process that waits may pause between two looks.
FAILURE_SHOWN = 4 * LONGEST_PAUSE


class KeyringPolicy(Policy):
    """``prefix`` of all descriptions (a request-key rule must match it); seconds:
    ``request_timeout`` for request_key(2) itself, ``upcall_timeout`` for the answer.

    ``session_cache``: the name of a collection of credentials (krb5's KEYRING:session:NAME)
    whose presence in a session keyring gives that session contexts of its own; None: any
    collection there; empty: none.  Credentials there that krb5.conf does not lead to cost
    an upcall for each session, nothing more.
    """

    name = "keyring"

    def __init__(
        self,
        prefix: str = "lgss:",
        request_timeout: float = 10.0,
        upcall_timeout: float = 35.0,
        session_cache: str | None = None,
    ) -> None:
        self._prefix = prefix
        self._request_timeout = request_timeout
        self._upcall_timeout = upcall_timeout
        self._session_cache = session_cache
        self._alive: set[Context] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def alive(self) -> int:
        """See :class:`.policy.Policy`."""
        return len(self._alive)

    def domain(self, sec: SecurityObject, uid: int) -> int:
        """See :class:`.policy.Policy`."""
        # Who asks for another or for the machine brings no credentials along.
        if self._session_cache == "" or not _own(sec, uid):
            return 0
        if self._session_cache is None:
            found = keyrings.has_collection(keyrings.SESSION)
        else:
            name = keyrings.COLLECTION + self._session_cache.encode()
            found = bool(keyrings.search(keyrings.SESSION, "keyring", name))
        return keyrings.serial_of(keyrings.SESSION) if found else 0

    def description(self, context: Context) -> str:
        """The key's name, unique over uid, target, client and connection (5.1), and over
        what is asked for."""
        target = context.sec.target
        session = f":s{context.domain:x}" if context.domain else ""
        return (
            f"{self._prefix}{context.uid}@{target.obd_name}@{target.nid:x}:{target.client_uuid}"
            f":{target.connection}:{context.sec.flavor}:{target.service}{_flags(context)}{session}"
        )

    def _callout(self, context: Context) -> str:
        target, flavor = context.sec.target, context.sec.flavor
        return format_callout(
            mechanism=flavor.mechanism,
            uid=context.uid,
            gid=group_of(context.uid),
            flags=_flags(context),
            service_type=flavor.service_type,
            lustre_service=target.service,
            target_nid=target.nid,
            obd_name=target.obd_name,
            self_nid=target.self_nid,
            client_uuid=target.client_uuid,
        )

    # The life of a key.

    def start(self, context: Context) -> None:
        """See :class:`.policy.Policy`."""
        with self._lock:
            self._alive.add(context)
        # The thread holds the context, too: whatever the others do, it ends in order.
        context.get()
        thread = threading.Thread(target=self._upcall, args=(context,), daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._threads.discard(thread)
            context.requested.set()
            context.put()
            raise ContextError(
                "cannot start a thread for the request", errno=errno.EAGAIN, hint="a limit of processes"
            ) from error
        if not context.started.wait(self._request_timeout):
            context.requested.set()  # as far as anybody can wait for it
            context.failed(
                ContextError(
                    f"request_key(2) did not return within {self._request_timeout:g} s",
                    errno=errno.ETIMEDOUT,
                    hint="the handler hangs before it instantiates; see request-key.conf(5) and the log",
                )
            )
        if context.state is State.ERROR and not context.key:
            raise context.fresh_error()

    def _upcall(self, context: Context) -> None:
        try:
            try:
                try:
                    self._request(context)
                finally:
                    context.requested.set()
                self._await(context)
            except LgssError as error:
                context.failed(error)
            except BaseException as error:
                context.failed(LgssError(f"{type(error).__name__}: {error}"))
            if context.key and not context.cached:
                if context.error is not None and context.error.kind == Kind.UPCALL:
                    # For all who wait for this key; but expired it would take of its
                    # user's quota until the collector comes, five minutes later.
                    time.sleep(FAILURE_SHOWN)
                # Else it left the cache while this key was still to come.
                self._invalidate(context)
        finally:
            context.put()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def close(self) -> None:
        """See :class:`.policy.Policy`: those that take a failed key away are waited for."""
        with self._lock:
            threads = list(self._threads)
        end = time.monotonic() + 2 * FAILURE_SHOWN
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))

    def _request(self, context: Context) -> None:
        """request_key(2), from this thread; raises KeyOperationError."""
        if not _own(context.sec, context.uid):
            keyrings.join_session()  # this thread alone does
        ring = keyrings.SESSION if context.domain else keyrings.USER
        if not context.domain:
            keyrings.link(keyrings.USER, keyrings.THREAD)
        context.keyrings = (keyrings.serial_of(ring),)
        name, callout = self.description(context), self._callout(context)
        end, pause = time.monotonic() + BLOCKED_SECONDS, FIRST_PAUSE
        while True:
            try:
                key = keys.request(name, callout, ring)
                break
            except KeyOperationError as error:
                # A revoked key that is still linked blocks its name for ever
                # (docs/protocol.md 10), and an invalidated one until the collector has come by.
                if error.errno != errno.EKEYREVOKED or time.monotonic() > end:
                    raise KeyOperationError(
                        f"no key {name}: {os.strerror(error.errno)}",
                        errno=error.errno,
                        kind=Kind.REQUEST,
                        hint="the log of lgss_keyring has the cause; ENOKEY: no request-key rule matches",
                    ) from error
            _unlink_revoked(name, context.keyrings[0])
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        owner = keyrings.owner(key)
        if owner != os.geteuid():
            # It was found in a session keyring that somebody else has filled, and the kernel
            # has linked it into our ring. Its payload is his choice.
            keyrings.unlink(key, ring)
            raise KeyOperationError(
                f"key {key} named {name} is uid {owner}'s",
                errno=errno.EACCES,
                kind=Kind.REQUEST,
                hint="it is in the session keyring, which somebody else has filled: keyctl show",
            )
        context.key = key
        if context.state is State.NEW:
            context.started.set()

    def _await(self, context: Context) -> None:
        """Look until the key has its answer; raises LgssError."""
        end = time.monotonic() + self._upcall_timeout
        pause = FIRST_PAUSE
        while context.state is State.NEW:
            try:
                data = keys.read(context.key)
            except KeyOperationError as error:
                raise ContextError(
                    f"key {context.key} ended before its answer: {os.strerror(error.errno)}",
                    errno=error.errno,
                ) from error
            if data != PLACEHOLDER:
                context.take(payload.unpack(data))
                return
            if time.monotonic() > end:
                raise ContextError(
                    f"no answer in key {context.key} within {self._upcall_timeout:g} s",
                    errno=errno.ETIMEDOUT,
                    hint="the upcall was killed, or is stuck: see the log of lgss_keyring",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def check(self, context: Context) -> int:
        """See :class:`.policy.Policy`; one system call."""
        try:
            keyrings.describe(context.key)
        except KeyOperationError as error:
            return error.errno
        return 0

    def retire(self, context: Context) -> None:
        """See :class:`.policy.Policy`: the key goes with its context (5.1)."""
        # Not before it is there: the next look-up would be given the same key by its name,
        # and lose it to this one's end.
        context.requested.wait(self._request_timeout)
        error = context.error
        if not context.key or (error is not None and error.kind == Kind.UPCALL):
            return  # the upcall's own failure is for all who wait for this key: see _upcall
        thread = threading.Thread(target=self._invalidate, args=(context,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no more threads: it stays until it expires, and the next one may find it
        thread.join()

    def destroy(self, context: Context) -> None:
        """See :class:`.policy.Policy`; its key has gone when it left the cache."""
        with self._lock:
            self._alive.discard(context)

    @staticmethod
    def _invalidate(context: Context) -> None:
        """Invalidate the key by its serial; in a thread of its own, which gets @u in reach."""
        try:
            try:
                # Mostly the session has @u; a thread keyring costs of the user's quota.
                keys.invalidate(context.key)
            except KeyOperationError as error:
                if context.domain or error.errno != errno.EACCES:
                    raise
                keyrings.link(keyrings.USER, keyrings.THREAD)
                keys.invalidate(context.key)
        except KeyOperationError:
            pass  # it has gone by itself: expired, invalidated by another process

    def display(self, context: Context) -> str:
        """See :class:`.policy.Policy`."""
        if not context.key:
            return "no key"
        try:
            told = keyrings.describe(context.key).decode("ascii", "replace")
        except KeyOperationError as error:
            told = os.strerror(error.errno)
        rings = ", ".join(str(ring) for ring in context.keyrings)
        return f"key {context.key} ({told}) in keyring {rings}"


def _own(sec: SecurityObject, uid: int) -> bool:
    """Whether a context of ``uid`` is made with this process's own credentials: the handler
    takes no others from its keyrings."""
    return uid == os.geteuid() and not (uid == 0 and sec.root_flags)


def _flags(context: Context) -> str:
    return "" if context.uid else context.sec.root_flags


def _unlink_revoked(name: str, ring: int) -> None:
    """Unlink the revoked key called ``name`` from ``ring``, if there is one.

    As long as it is there request_key(2) makes no successor of that name, so this cannot
    hit one; the lock keeps other processes that do this from taking it away between the look
    and the unlinking.  An invalidated key is left to the collector: its place may be free,
    and taken again, at any moment.
    """
    wanted = f"{name}:".encode()
    with open("/proc/keys", "rb") as listed:
        for _ in range(20):
            try:
                fcntl.flock(listed, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(FIRST_PAUSE)  # whoever keeps it longer only wants to be in the way
        for line in listed:
            words = line.split(None, 8)
            if len(words) == 9 and b"R" in words[1] and b"i" not in words[1] and words[8].startswith(wanted):
                serial = int(words[0], 16)
                try:
                    if serial in keyrings.members(ring):
                        keyrings.unlink(serial, ring)
                except KeyOperationError:
                    pass

"""The keyring policy: a context for each key, made by an upcall (docs/design-2008.md 4, 5.1 to 5.8).

How user space does what the paper describes for the kernel:

- *All processes of root share one key for a target, and so do those of a user* (5.7), in
  whatever session keyring they are.  The key is linked into the user keyring (@u), and @u is
  linked into the thread keyring where the request is made.  A thread of its own makes each
  request: a thread keyring belongs to its thread, so the caller's keyrings are never changed
  and nothing has to be restored.  (Linking @u into the caller's own @t and out again would
  leave an empty thread keyring behind.)  Where nothing of the session's is needed (the
  machine's contexts, and those for other users) that thread also joins a session keyring of
  its own, as the paper wants: root's session keyring may be that of the user who called
  su(1), and be full of that user's keys.
- *No key of another user's is taken*, wherever it is found.
- *A session with credentials of its own* (3.2, NRL) has its own keys: they are linked into that
  session keyring only, and have its serial in their names.
- *The caller goes on when the key is instantiated* (5.3).  The same thread then waits for the
  update by looking at the key with growing pauses, as most kernels do not notify.
- *request_key(2) itself may hang* (5.4): the caller waits for that thread for a limited time.
- *Nothing is unlinked by name* (5.8): keyctl_unlink goes by type and description and may hit a
  successor.  A key is ended by keyctl_invalidate, which goes by serial: it removes all links of
  that very key, and frees its name at once.
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
from lgss_keyring.sptlrpc import limits
from lgss_keyring.sptlrpc.context import Context
from lgss_keyring.sptlrpc.context_fields import ContextError, State
from lgss_keyring.sptlrpc.policy import Policy, group_of
from lgss_keyring.system import keyrings, keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.sptlrpc.sec import SecurityObject

PLACEHOLDER = b"\0"
"""The payload of a key that is instantiated and has no answer yet."""


class KeyringPolicy(Policy):
    """Options:

    - ``prefix``: the beginning of all keys' descriptions; a request-key rule must match it
    - ``request_timeout``: seconds that request_key(2) itself may take
    - ``upcall_timeout``: seconds that the answer may take
    - ``session_cache``: the name of a collection of credentials (krb5's
      KEYRING:session:NAME) whose presence in a session keyring gives that session contexts
      of its own.  None: any collection there does.  Empty: none does.
    """

    name = "keyring"

    def __init__(
        self,
        prefix: str = "lgss:",
        request_timeout: float = limits.REQUEST_SECONDS,
        upcall_timeout: float = limits.UPCALL_SECONDS,
        session_cache: str | None = None,
    ) -> None:
        self._prefix = prefix
        self._request_timeout = request_timeout
        self._upcall_timeout = upcall_timeout
        self._session_cache = session_cache
        # For each context that exists: set once nobody waits for a request_key(2) for it.
        self._requested: dict[Context, threading.Event] = {}
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def alive(self) -> int:
        """How many contexts exist."""
        return len(self._requested)

    def domain(self, sec: SecurityObject, uid: int) -> int:
        """The serial of this process's session keyring if it has credentials, else 0."""
        # Contexts for another user or for the machine are not made with them.
        if self._session_cache == "" or not _own(uid, "" if uid else sec.root_flags):
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
        target = context.target
        session = f":s{context.domain:x}" if context.domain else ""
        return (
            f"{self._prefix}{context.uid}@{target.obd_name}@{target.nid:x}:{target.client_uuid}"
            f":{target.connection}:{context.flavor}:{target.service}{context.flags}{session}"
        )

    def _callout(self, context: Context) -> str:
        target, flavor = context.target, context.flavor
        return format_callout(
            mechanism=flavor.mechanism,
            uid=context.uid,
            gid=group_of(context.uid),
            flags=context.flags,
            service_type=flavor.service_type,
            lustre_service=target.service,
            target_nid=target.nid,
            obd_name=target.obd_name,
            self_nid=target.self_nid,
            client_uuid=target.client_uuid,
        )

    # The life of a key.

    def start(self, context: Context) -> None:
        """Make the request in a thread of its own, and wait until its key is instantiated."""
        # The thread has a reference of its own, so the context exists until the thread ends.
        context.get()
        requested = threading.Event()
        thread = threading.Thread(target=self._upcall, args=(context, requested), daemon=True)
        with self._lock:
            self._requested[context] = requested
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._threads.discard(thread)
            requested.set()
            context.put()
            raise ContextError(
                "cannot start a thread for the request", errno=errno.EAGAIN, hint="a limit of processes"
            ) from error
        if not context.wait_started(self._request_timeout):
            requested.set()
            context.failed(
                ContextError(
                    f"request_key(2) did not return within {self._request_timeout:g} s",
                    errno=errno.ETIMEDOUT,
                    hint="the handler hangs before it instantiates; see request-key.conf(5) and the log",
                )
            )
        if context.state is State.ERROR and not context.key:
            raise context.fresh_error()

    def _upcall(self, context: Context, requested: threading.Event) -> None:
        try:
            try:
                try:
                    self._request(context)
                finally:
                    requested.set()
                self._await(context)
            except LgssError as error:
                context.failed(error)
            except BaseException as error:
                context.failed(LgssError(f"{type(error).__name__}: {error}"))
            if context.key and not context.cached:
                # It has left the cache, and retire() has not ended its key: either the key
                # was not there yet, or the upcall has failed.
                if context.error is not None and context.error.kind == Kind.UPCALL:
                    # All processes that wait for this key are to see the failure. The key
                    # cannot be left to expire: it would count against its user's quota until
                    # the collector comes, five minutes later.
                    time.sleep(limits.FAILURE_SHOWN_SECONDS)
                self._invalidate(context)
        finally:
            context.put()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def close(self) -> None:
        """Wait for the threads that end failed keys."""
        with self._lock:
            threads = list(self._threads)
        end = time.monotonic() + 2 * limits.FAILURE_SHOWN_SECONDS
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))

    def _request(self, context: Context) -> None:
        """request_key(2), from this thread; raises KeyOperationError."""
        if not _own(context.uid, context.flags):
            keyrings.join_session()  # changes this thread alone
        keyring = keyrings.SESSION if context.domain else keyrings.USER
        if not context.domain:
            keyrings.link(keyrings.USER, keyrings.THREAD)
        serial = keyrings.serial_of(keyring)
        key = self._request_when_free(self.description(context), self._callout(context), keyring, serial)
        owner = keyrings.owner(key)
        if owner != os.geteuid():
            # It was found in a session keyring that another user has filled, and the kernel
            # has linked it into our keyring. That user has chosen its payload.
            keyrings.unlink(key, keyring)
            raise KeyOperationError(
                f"key {key} named {self.description(context)} is uid {owner}'s",
                errno=errno.EACCES,
                kind=Kind.REQUEST,
                hint="it is in the session keyring, which another user has filled: keyctl show",
            )
        context.instantiated(key, (serial,))

    @staticmethod
    def _request_when_free(name: str, callout: str, keyring: int, serial: int) -> int:
        """The serial of the key ``name``, linked into ``keyring``, whose serial is ``serial``,
        once no dead key has that name any more; raises KeyOperationError."""
        end, pause = time.monotonic() + limits.NAME_FREE_SECONDS, limits.FIRST_PAUSE_SECONDS
        while True:
            try:
                return keys.request(name, callout, keyring)
            except KeyOperationError as error:
                # A revoked key that is still linked blocks its name for ever
                # (docs/protocol.md 10), and an invalidated one until the collector has come.
                if error.errno != errno.EKEYREVOKED or time.monotonic() > end:
                    raise KeyOperationError(
                        f"no key {name}: {os.strerror(error.errno)}",
                        errno=error.errno,
                        kind=Kind.REQUEST,
                        hint="see the log of lgss_keyring; ENOKEY and no line: no request-key rule matches",
                    ) from error
            _unlink_revoked(name, serial)
            time.sleep(pause)
            pause = min(pause * 2, limits.LONGEST_PAUSE_SECONDS)

    def _await(self, context: Context) -> None:
        """Look until the key has its answer; raises LgssError."""
        end = time.monotonic() + self._upcall_timeout
        pause = limits.FIRST_PAUSE_SECONDS
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
            pause = min(pause * 1.5, limits.LONGEST_PAUSE_SECONDS)

    def check(self, context: Context) -> int:
        """0 while the key is there, else the kernel's errno; one system call."""
        try:
            keyrings.describe(context.key)
        except KeyOperationError as error:
            return error.errno
        return 0

    def retire(self, context: Context) -> None:
        """End the key (docs/design-2008.md 5.1)."""
        # Not before the key is there: the next look-up would find the same key by its name,
        # and would lose it when this context's key is ended.
        with self._lock:
            requested = self._requested.get(context)
        if requested is not None:
            requested.wait(self._request_timeout)
        error = context.error
        if not context.key or (error is not None and error.kind == Kind.UPCALL):
            return  # _upcall ends the key of a failed upcall, after others have seen it
        thread = threading.Thread(target=self._invalidate, args=(context,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no more threads: the key stays until it expires, and may be found again
        thread.join()

    def destroy(self, context: Context) -> None:
        """Forget it; its key was ended when it left the cache."""
        with self._lock:
            self._requested.pop(context, None)

    @staticmethod
    def _invalidate(context: Context) -> None:
        """Invalidate the key by its serial.  The calling thread must be one of our own: its
        thread keyring may get a link to @u."""
        try:
            try:
                # The session mostly has @u, and a thread keyring counts against the user's
                # quota.
                keys.invalidate(context.key)
            except KeyOperationError as error:
                if context.domain or error.errno != errno.EACCES:
                    raise
                keyrings.link(keyrings.USER, keyrings.THREAD)
                keys.invalidate(context.key)
        except KeyOperationError:
            pass  # it has expired, or another process has invalidated it

    def display(self, context: Context) -> str:
        """The key's serial, what the kernel says of it, and its keyrings."""
        if not context.key:
            return "no key"
        try:
            described = keyrings.describe(context.key).decode("ascii", "replace")
        except KeyOperationError as error:
            described = os.strerror(error.errno)
        linked = ", ".join(str(keyring) for keyring in context.keyrings)
        return f"key {context.key} ({described}) in keyring {linked}"


def _own(uid: int, flags: str) -> bool:
    """Whether a context of ``uid`` is made with this process's own credentials: only then
    does the handler look for credentials in this process's keyrings."""
    return uid == os.geteuid() and not flags


def _unlink_revoked(name: str, keyring: int) -> None:
    """Unlink the revoked key called ``name`` from ``keyring`` (a serial), if there is one.

    As long as it is there request_key(2) makes no successor of that name, so this cannot
    hit a successor.  The lock keeps other processes that do the same from unlinking the key
    between our look and our unlinking.  An invalidated key is left to the collector: its name
    may be free, and used again, at any moment.
    """
    wanted = name.encode()
    with open("/proc/keys", "rb") as listed:
        for _ in range(limits.REVOKED_LOCK_TRIES):
            try:
                fcntl.flock(listed, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(limits.FIRST_PAUSE_SECONDS)
        # We go on without the lock: no process of ours holds it that long.
        for line in listed:
            fields = line.split(None, 8)
            # The last field is the description, a colon and the size of the payload.
            if len(fields) != 9 or fields[8].rpartition(b": ")[0] != wanted:
                continue
            if b"R" in fields[1] and b"i" not in fields[1]:
                serial = int(fields[0], 16)
                try:
                    if serial in keyrings.members(keyring):
                        keyrings.unlink(serial, keyring)
                except KeyOperationError:
                    pass

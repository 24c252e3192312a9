"""Taking dead contexts out of this user's user keyring, where they count against the user's quota.

Root has no way to a user's keys (docs/protocol.md 10), so that user's resident worker does this when
lgssd asks for it, and the machine's for root.  keyctl_unlink(2) goes by name, not by serial, and may
hit a key that has taken the other's place (docs/protocol.md 7).  So each kind has its own way:

- A *revoked* key is unlinked.  It blocks its name: as long as it is linked, request_key(2) makes no
  successor for a process whose keyrings lead to the user keyring.  For other processes it does, so
  the key's serial is looked for in the user keyring right before the unlinking: only a successor that
  comes between these two calls could be hit.  A lock keeps other processes of ours from doing the same
  meanwhile.
- An *expired* key does not block its name: a successor may take its place at any moment.  No call of
  keyctl(2) goes by the serial of such a key, so it is counted and left to the kernel's collector, which
  takes it away some minutes later (``/proc/sys/kernel/keys/gc_delay``).
- An *orphan* is alive and never expires, because the process that had to set its timeout was killed:
  it holds a context whose time is over, or a failure.  It is invalidated, which goes by serial.  As that
  process may be about to set the timeout, the key must have been an orphan some seconds before, too.

All other keys are left alone: those that are valid, under construction, another user's, not linked in
the user keyring itself, or not ours by type and name.
"""

from __future__ import annotations

import fcntl
import time

from lgss_keyring.formats import payload
from lgss_keyring.formats.callout import USER_PREFIX
from lgss_keyring.formats.errors import KeyOperationError, PayloadError
from lgss_keyring.formats.job_messages import DeadKeys
from lgss_keyring.system import keyrings
from lgss_keyring.worker import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

REVOKED, EXPIRED, LASTING = "revoked", "expired", "lasting"


def kind_of(line: bytes, uid: int) -> tuple[int, str]:
    """The serial in a line of /proc/keys, and what the key is if it is one of our contexts: revoked,
    expired, or lasting (alive, of type ``user``, without a timeout).  The serial is 0 for all other keys.

    A line has serial, flags, usage, timeout, permissions, uid, gid, type and description, all but the
    description without spaces; the flags are letters, ``-`` for one that is not set (proc(5)).
    """
    fields = line.split(None, 8)
    if len(fields) != 9 or fields[5] != b"%d" % uid:
        return 0, ""
    serial, flags, _, timeout, _, _, _, key_type, description = fields
    is_user = key_type == b"user" and description.startswith(USER_PREFIX.encode())
    # Instantiated; neither under construction nor invalidated, dead or rejected.
    if not (is_user or key_type == b"lgssc") or b"I" not in flags or set(flags) & set(b"UiDN"):
        return 0, ""
    if b"R" in flags:
        kind = REVOKED
    elif timeout == b"expd":
        kind = EXPIRED
    elif timeout == b"perm" and is_user:
        kind = LASTING
    else:
        return 0, ""
    return int(serial, 16), kind


class DeadKeysCollector:
    """Looks at the keys of ``uid``, which this process is."""

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._orphans: dict[int, float] = {}
        """When orphans were first seen, by serial; times are of time.monotonic()."""

    def collect(self) -> DeadKeys:
        """Take out what is dead, and count it.  Raises nothing; looks at a bounded number of keys, for a
        bounded time."""
        try:
            return self._collect(time.monotonic() + limits.DEAD_KEYS_SECONDS)
        except (OSError, KeyOperationError):
            return DeadKeys(0, 0, 0, 0)  # no keyrings here, or no /proc

    def _collect(self, end: float) -> DeadKeys:
        members = set(keyrings.members(keyrings.USER)[: limits.DEAD_KEYS])
        if not members:
            return DeadKeys(0, 0, 0, 0)
        revoked = expired = 0
        lasting = []
        with open("/proc/keys", "rb") as listed:
            self._lock(listed)
            for line in listed:
                serial, kind = kind_of(line, self._uid)
                if serial in members:
                    revoked += kind == REVOKED and self._unlink(serial)
                    expired += kind == EXPIRED
                    if kind == LASTING:
                        lasting.append(serial)
                if time.monotonic() > end:
                    break
        taken, waiting = self._take_orphans(lasting, end) if lasting else (0, 0)
        return DeadKeys(revoked, expired, taken, waiting)

    @staticmethod
    def _lock(listed: IO[bytes]) -> None:
        for _ in range(limits.DEAD_KEYS_LOCK_TRIES):
            try:
                fcntl.flock(listed, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(limits.LOCK_POLL_SECONDS)
            else:
                return
        # We go on without it: any user can hold this lock, and no process of ours does for so long.

    @staticmethod
    def _unlink(serial: int) -> bool:
        try:
            if serial not in keyrings.members(keyrings.USER):
                return False
            keyrings.unlink(serial, keyrings.USER)
        except KeyOperationError:
            return False  # another process was faster
        return True

    def _take_orphans(self, lasting: Iterable[int], end: float) -> tuple[int, int]:
        """Invalidate those of ``lasting`` that are orphans; returns how many, and how many may be soon."""
        user_keyring = keyrings.serial_of(keyrings.USER)
        # Only what can be found from here may be read and invalidated.
        is_linked = user_keyring in keyrings.members(keyrings.SESSION)
        if not is_linked:
            keyrings.link(user_keyring, keyrings.SESSION)
        try:
            return self._invalidate_orphans(lasting, end)
        finally:
            if not is_linked:
                keyrings.unlink(user_keyring, keyrings.SESSION)

    def _invalidate_orphans(self, lasting: Iterable[int], end: float) -> tuple[int, int]:
        seen, taken = {}, 0
        for serial in lasting:
            now = time.monotonic()
            if now > end:
                break
            try:
                if not is_over(keyrings.read(serial)):
                    continue
                seen[serial] = self._orphans.get(serial, now)
                if now - seen[serial] >= limits.ORPHAN_SECONDS:
                    keyrings.invalidate(serial)
                    del seen[serial]
                    taken += 1
            except KeyOperationError:
                pass  # it is gone, or may not be read
        self._orphans = seen
        return taken, len(seen)


def is_over(data: bytes) -> bool:
    """Whether a key's payload is a failure, or a krb5 context whose time is over."""
    try:
        answer = payload.unpack(data)
        if isinstance(answer, payload.FailurePayload):
            return True
        return payload.Krb5Context.unpack(answer.context).endtime + limits.CLOCK_SKEW_SECONDS < time.time()
    except PayloadError:
        return False

"""Every key operation for the rest of the package.

Over python-keyutils, and over :mod:`lgss_keyring.front.keyctl` where that has none.  All
raise :class:`~lgss_keyring.formats.errors.KeyOperationError` with the kernel's errno, and
the native error as cause.
"""

from __future__ import annotations

import errno
import os
import sys

import keyutils

from lgss_keyring.formats.errors import KeyOperationError
from lgss_keyring.front import keyctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

THREAD = keyutils.KEY_SPEC_THREAD_KEYRING
SESSION = keyutils.KEY_SPEC_SESSION_KEYRING
USER = keyutils.KEY_SPEC_USER_KEYRING

# Answers to an update that mean that nobody waits for this key any more
# (PROTOCOL 7): ENOKEY also stands for an invalidated and collected key.
GONE = frozenset({errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.EACCES, errno.ENOKEY})


def _call(what: str, key: int, function: Callable[..., object], *arguments: object) -> object:
    try:
        return function(*arguments)
    except (keyutils.Error, OSError) as error:
        number = int(error.args[0])
        raise KeyOperationError(
            f"cannot {what} key {key}: {os.strerror(number)}", errno=number, kind="key"
        ) from error


def update(key: int, payload: bytes) -> None:
    """Replace the payload; a ``user`` key loses its timeout by it (PROTOCOL 10)."""
    _call("update", key, keyutils.update_key, key, payload)


def set_timeout(key: int, seconds: int) -> None:
    """Let ``key`` expire in ``seconds`` (0: never)."""
    _call("set the timeout of", key, keyutils.set_timeout, key, seconds)


def read(key: int) -> bytes:
    """The payload of ``key``; type ``lgssc`` cannot be read (EOPNOTSUPP)."""
    return bytes(_call("read", key, keyutils.read_key, key))  # type: ignore[call-overload, no-any-return]


def link(key: int, keyring: int) -> None:
    """Link ``key``, or a keyring, into ``keyring``."""
    _call("link", key, keyutils.link, key, keyring)


def unlink(key: int, keyring: int) -> None:
    """Unlink ``key`` from ``keyring``; by type and description (PROTOCOL 7): another one of
    that name goes instead if it has taken the place."""
    _call("unlink", key, keyutils.unlink, key, keyring)


def invalidate(key: int) -> None:
    """Make ``key``, this very one, vanish from all keyrings, its name free again."""
    _call("invalidate", key, keyctl.invalidate, key)


def request(description: str, callout: str, keyring: int) -> int:
    """A ``user`` key, found or made by an upcall, linked into ``keyring``."""
    name = description.encode()
    serial = _call("get", keyring, keyctl.request_key, b"user", name, callout.encode(), keyring)
    assert isinstance(serial, int)
    return serial


def describe(key: int) -> str:
    """``key`` as the kernel describes it: type, owner, permissions, description."""
    told = _call("describe", key, keyutils.describe_key, key)
    assert isinstance(told, bytes)
    return told.decode("ascii", "replace")


def serial_of(keyring: int) -> int:
    """The positive serial behind a special keyring id; the keyring is made if need be."""
    serial = _call("find", keyring, keyctl.get_keyring_id, keyring, True)
    assert isinstance(serial, int)
    return serial


def members(keyring: int) -> list[int]:
    """The serials of all that is linked in ``keyring``."""
    data = read(keyring)
    return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]


COLLECTION = b"_krb_"
"""What libkrb5 puts before the name of a collection of KEYRING caches."""


def has_collection(keyring: int) -> bool:
    """Whether there is any collection of KEYRING caches in ``keyring``."""
    try:
        found = members(keyring)
    except KeyOperationError:
        return False
    for key in found:
        try:
            if COLLECTION in keyutils.describe_key(key):
                return True
        except keyutils.Error:
            pass  # gone, or not ours to look at
    return False


def owner(key: int) -> int:
    """The uid that ``key`` belongs to."""
    return int(describe(key).split(";")[1])


def owned(key: int, uid: int) -> bool:
    """Whether ``key`` belongs to ``uid``; False for one that cannot be looked at."""
    try:
        return owner(key) == uid
    except KeyOperationError:
        return False


def join_session() -> None:
    """Give the calling thread, alone, a new session keyring."""
    _call("join a session keyring as", 0, keyutils.join_session_keyring)


def leave_session() -> None:
    """Have a new session keyring, where there are keyrings at all: containers mostly forbid
    them, and then there is nothing to leave."""
    try:
        join_session()
    except KeyOperationError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def search(keyring: int, key_type: str, description: bytes) -> int:
    """The serial of a key in ``keyring`` or below it, 0 if there is none in reach."""
    try:
        return int(keyutils.search(keyring, description, 0, key_type.encode()) or 0)
    except keyutils.Error:
        return 0


def unlink_requestor(keyrings: tuple[int, ...]) -> None:
    """Take the requestor's keyrings out of our session keyring again.

    Before the machine's credential is looked for: with a user's session keyring
    linked, root would resolve ``KEYRING:session`` to that user's TGT (PROTOCOL
    10).  A keyring that the front could not link, or that is dead, is not in reach: no
    error.  Any other failure is one, raised as KeyOperationError.
    """
    for ring in keyrings:
        if ring:
            try:
                _call("unlink", ring, keyutils.unlink, ring, keyctl.KEY_SPEC_SESSION_KEYRING)
            except KeyOperationError as error:
                if error.errno not in (errno.ENOENT, *(GONE - {errno.EACCES})):
                    raise

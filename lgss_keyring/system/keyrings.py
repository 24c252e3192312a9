"""Operations on keyrings, for every process of ours, also for those that run as the user.

:func:`owned` and :func:`has_collection` raise nothing, and :func:`search` returns 0 for an error.
All others raise :class:`~lgss_keyring.formats.errors.KeyOperationError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import sys

from lgss_keyring.formats.errors import KeyOperationError
from lgss_keyring.system.libkeyutils import BYTES, INT, SERIAL, SIZE, UNSIGNED, call, fetch

THREAD, PROCESS, SESSION, USER = -1, -2, -3, -4
"""Special keyring ids (keyctl(2)), which stand for the calling thread's own keyrings."""

COLLECTION = b"_krb_"
"""What libkrb5 puts before the name of a collection of KEYRING caches."""


def make(description: str, keyring: int) -> int:
    """The serial of a new keyring, linked into ``keyring``."""
    types = (BYTES, BYTES, ctypes.c_void_p, SIZE, SERIAL)
    return call("make a keyring", "add_key", types, b"keyring", description.encode(), None, 0, keyring)


def set_permissions(key: int, permissions: int) -> None:
    """Give ``key`` the ``permissions`` of keyctl_setperm(3): a byte each for possessor, user,
    group and others."""
    call(f"set permissions of key {key}", "keyctl_setperm", (SERIAL, UNSIGNED), key, permissions)


def link(key: int, keyring: int) -> None:
    """Link ``key``, or a keyring, into ``keyring``."""
    call(f"link key {key}", "keyctl_link", (SERIAL, SERIAL), key, keyring)


def unlink(key: int, keyring: int) -> None:
    """Unlink ``key`` from ``keyring``.

    The kernel looks for its type and description (docs/protocol.md 7): another key of that name
    is unlinked instead if it has replaced ``key`` there.
    """
    call(f"unlink key {key}", "keyctl_unlink", (SERIAL, SERIAL), key, keyring)


def describe(key: int) -> bytes:
    """``key`` as the kernel describes it: type;uid;gid;permissions;description."""
    return fetch(f"describe key {key}", "keyctl_describe", key).rstrip(b"\0")


def owner(key: int) -> int:
    """The uid that ``key`` belongs to."""
    return int(describe(key).split(b";")[1])


def owned(key: int, uid: int) -> bool:
    """Whether ``key`` belongs to ``uid``; False for one that cannot be looked at."""
    try:
        return owner(key) == uid
    except KeyOperationError:
        return False


def serial_of(keyring: int) -> int:
    """The positive serial behind a special keyring id; the keyring is made if need be."""
    return call(f"find keyring {keyring}", "keyctl_get_keyring_ID", (SERIAL, INT), keyring, 1)


def members(keyring: int) -> list[int]:
    """The serials of all that is linked in ``keyring``."""
    data = fetch(f"read keyring {keyring}", "keyctl_read", keyring)
    return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]


def read(key: int) -> bytes:
    """The payload of ``key``; type ``lgssc`` cannot be read (EOPNOTSUPP)."""
    return fetch(f"read key {key}", "keyctl_read", key)


def invalidate(key: int) -> None:
    """Make ``key`` vanish from all keyrings, so that its name is free again.  Goes by serial, unlike
    :func:`unlink`."""
    call(f"invalidate key {key}", "keyctl_invalidate", (SERIAL,), key)


def has_collection(keyring: int) -> bool:
    """Whether there is any collection of KEYRING caches in ``keyring``."""
    try:
        found = members(keyring)
    except KeyOperationError:
        return False
    for key in found:
        try:
            if COLLECTION in describe(key):
                return True
        except KeyOperationError:
            pass  # gone, or not ours to look at
    return False


def search(keyring: int, key_type: str, description: bytes) -> int:
    """The serial of a key in ``keyring`` or in those that are linked in it; 0 if there is none
    that this process may find."""
    try:
        types = (SERIAL, BYTES, BYTES, SERIAL)
        return call("search", "keyctl_search", types, keyring, key_type.encode(), description, 0)
    except KeyOperationError:
        return 0


def join_session() -> None:
    """Give the calling thread, alone, a new session keyring."""
    call("join a new session keyring", "keyctl_join_session_keyring", (BYTES,), None)


def leave_session() -> None:
    """Replace the session keyring by a new one.  Where keyrings are forbidden, as in most containers,
    there is none to replace, and that is no error."""
    try:
        join_session()
    except KeyOperationError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


# The errnos of unlinking a keyring that is not linked, or that is dead. In both cases it is out of
# reach, as it should be. After EACCES it may still be linked.
_OUT_OF_REACH = (errno.ENOENT, errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.ENOKEY)


def unlink_requestor(keyrings: tuple[int, ...]) -> None:
    """Take the requestor's keyrings out of our session keyring again.

    This comes before the machine's credential is looked for.  If a user's session keyring were
    still linked, root would take ``KEYRING:session`` for that user's TGT (docs/protocol.md 10).
    A keyring that the front could not link, or that is dead, is no error.  Any other failure is.
    """
    for keyring in keyrings:
        if keyring:
            try:
                unlink(keyring, SESSION)
            except KeyOperationError as error:
                if error.errno not in _OUT_OF_REACH:
                    raise

"""Operations on keyrings: what every process of ours may do with those in its reach.

All but those that answer yes or no raise
:class:`~lgss_keyring.formats.errors.KeyOperationError` with the kernel's errno.
"""

from __future__ import annotations

import errno
import sys

from lgss_keyring.formats.errors import KeyOperationError
from lgss_keyring.system.libkeyutils import BYTES, INT, SERIAL, call, fetch

THREAD, PROCESS, SESSION, USER = -1, -2, -3, -4
"""Special keyring ids (keyctl(2)): the calling thread's own keyrings."""

COLLECTION = b"_krb_"
"""What libkrb5 puts before the name of a collection of KEYRING caches."""


def link(key: int, keyring: int) -> None:
    """Link ``key``, or a keyring, into ``keyring``."""
    call(f"link key {key}", "keyctl_link", (SERIAL, SERIAL), key, keyring)


def unlink(key: int, keyring: int) -> None:
    """Unlink ``key`` from ``keyring``; by type and description (docs/protocol.md 7): another one of
    that name goes instead if it has taken the place."""
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
    """The serial of a key in ``keyring`` or below it, 0 if there is none in reach."""
    try:
        types = (SERIAL, BYTES, BYTES, SERIAL)
        return call("search", "keyctl_search", types, keyring, key_type.encode(), description, 0)
    except KeyOperationError:
        return 0


def join_session() -> None:
    """Give the calling thread, alone, a new session keyring."""
    call("join a new session keyring", "keyctl_join_session_keyring", (BYTES,), None)


def leave_session() -> None:
    """Have a new session keyring, where there are keyrings at all: containers mostly forbid
    them, and then there is nothing to leave."""
    try:
        join_session()
    except KeyOperationError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


# What unlinking answers for a keyring that is not linked, or that is dead: it is out of
# reach, as it should be. EACCES is none of these.
_OUT_OF_REACH = (errno.ENOENT, errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.ENOKEY)


def unlink_requestor(keyrings: tuple[int, ...]) -> None:
    """Take the requestor's keyrings out of our session keyring again.

    Before the machine's credential is looked for: with a user's session keyring
    linked, root would resolve ``KEYRING:session`` to that user's TGT
    (docs/protocol.md 10).  A keyring that the front could not link, or that is dead, is no error.  Any other
    failure is one.
    """
    for keyring in keyrings:
        if keyring:
            try:
                unlink(keyring, SESSION)
            except KeyOperationError as error:
                if error.errno not in _OUT_OF_REACH:
                    raise

"""Where the requestor of a ``user`` key is: callout field 10 must not name another place.

Lustre's kernel writes callout info for keys of type ``lgssc``, and nobody can read such a key.  A
``user`` key's is its requestor's own text, and the requestor reads the answer.  In a container
without a user namespace a process can be of any uid; with field 10 it would get what that uid has
out here.  The kernel tells the process that waits for the key: /proc/keys has its pid.
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.front.arguments import Call

PID = 10
"""The field that names the process whose namespaces hold the credentials (docs/protocol.md 2)."""
FIELDS = (11, 12)
DESCRIPTION_COLUMN = 8
"""Of /proc/keys; the column before it has nine characters of the key's type."""


def hold_to_it(key: int, call: Call) -> None:
    """Let field 10 of ``call`` name the requestor of ``key``, if that is in another mount namespace
    than we and the field names no process.

    Raises OSError (EACCES) if it names a process that is not in the requestor's mount namespace.
    """
    pids = _requestors(key)
    if not pids:
        return  # a kernel that does not tell
    theirs = {_namespace(pid) for pid in pids}
    if theirs == {_namespace("self")}:
        return
    fields = call.callout.split(":")
    # With colons in field 8 (an MGC's IPv6 NID) it is not for us to say which one is field 10.
    named = fields[PID] if len(fields) in FIELDS else ""
    if named == "0" and len(pids) == 1:
        fields[PID] = pids.pop()
        call.replace_callout(":".join(fields))
    elif not (named.isascii() and named.isdecimal()) or len(theirs) != 1 or _namespace(named) not in theirs:
        raise PermissionError(
            errno.EACCES,
            "it is in another mount namespace, and callout field 10 names no process there",
            "the requestor",
        )


def _namespace(pid: str) -> int:
    """The mount namespace of a process; raises OSError."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def _requestors(key: int) -> set[str]:
    """The pids that seem to wait for ``key``; more than one if somebody forges a line, as the
    description of a key may hold a newline."""
    wanted = f"key:{key:x}"
    found = set()
    try:
        with open("/proc/keys", encoding="utf-8", errors="replace", newline="\n") as keys:
            for line in keys:
                words = line.split(" pid:")[0].split()
                if words[DESCRIPTION_COLUMN - 1 :] == [".request_", wanted]:
                    pid = line.split(" pid:")[1].split()[0]
                    if pid.isascii() and pid.isdecimal():
                        found.add(pid)
    except (OSError, IndexError):
        pass
    return found

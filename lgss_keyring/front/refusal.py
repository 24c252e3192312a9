"""What the front does when there is nothing to negotiate.

Away from the front itself, because that is compiled at every upcall.  Imports as
little as the front does: it must work when the rest of the installation does not.
"""

from __future__ import annotations

import errno
import os
import sys

from lgss_keyring.formats.errors import SHORTAGE_HINT, shortage
from lgss_keyring.front import keyctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
usage: lgss_keyring [-R REALM] [--config FILE] [--timeout SECONDS]
                    create KEY TYPE DESC CALLOUT UID GID THREAD PROCESS SESSION

Negotiates a GSS context for a key that request_key(2) is making. Run by
/sbin/request-key for a line of /etc/request-key.d/*.conf, not by hand:
  create lgssc * * /usr/sbin/lgss_keyring %o %k %t %d %c %u %g %T %P %S

  -R, --realm REALM  the realm of the machine's own principals
  --config FILE      configuration (default: /etc/lgss_keyring.toml, if there)
  --timeout SECONDS  life of a `user` key whose negotiation does not end (2 to
                     3600, default 30)
  -h, --help         this text

See lgss_keyring(8).
"""
OPTIONS = ("-R", "--realm", "--config", "--timeout")
# Long enough for the requestor to see it, too short to outlive a repair. Not 1: the kernel
# counts whole seconds, and what is made at the end of one would be gone before the
# requestor has looked (seen: 1 of 100 got ENOKEY instead of our error).
REJECTED_LIFE = 2
FAILURE_LIFE = 2
PATIENCE = 5.0
# The default --timeout.
LIMIT = 30
KILLED = (
    "not even instantiated: lgss_keyring was killed, by its alarm (--timeout) or for want of memory; "
    "this machine is overloaded"
)


def refuse(arguments: Sequence[str], error: Exception) -> int:
    """Reject the key that ``arguments`` name, if they name one of ours, and say why.

    ``error`` is what stopped the front: an ``OSError`` of its own calls, or a
    ``ValueError`` for arguments that :func:`why` finds the words for.  Returns the
    exit status: 0 for ``--help``, 2 for wrong usage by hand, else 1.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        os.write(1, USAGE.encode())
        return 0
    if isinstance(error, ValueError):
        keyctl.alarm(LIMIT)  # the front's own is set when the arguments are found to be good
    number = errno.EINVAL
    kind, hint = "bad-arguments", "check the line in /etc/request-key.d that runs lgss_keyring"
    key = _serial(arguments)
    if isinstance(error, BrokenPipeError):
        return _orphaned(key, error)
    if isinstance(error, OSError):
        number = error.errno or errno.EIO
        reason = f"{error.filename or 'fork'}: {os.strerror(number)}"
        if shortage(error):
            kind, hint = "resources", SHORTAGE_HINT
    else:
        reason = why(arguments)
    if key:
        try:
            keyctl.assume_authority(key)
            keyctl.reject(key, REJECTED_LIFE, number)
        except OSError as failure:
            reason += f"; and key {key} is not ours to reject: {failure.strerror}"
    if os.isatty(2):
        os.write(2, f"lgss_keyring: {reason}\n{USAGE}".encode())
        return 2
    _log(key, arguments, kind, f"refused: {reason}; {hint}", number)
    return 1


def _orphaned(key: int, error: OSError) -> int:
    """Nobody reads the front's word to its child: that was killed, and ``key`` is
    instantiated, so nothing but an update ends it.  Not by us, for whose end the kernel
    waits before it takes one."""
    try:
        if os.fork() == 0:
            try:
                last_resort(key, error)
            finally:
                os._exit(1)
    except OSError:
        pass  # the key's timeout is all that is left
    return 1


def why(arguments: Sequence[str]) -> str:
    """In words what is wrong with the arguments of a call."""
    words = list(arguments)
    while words and words[0].startswith("-"):
        if words[0] not in OPTIONS or len(words) < 2:
            return f"unknown or incomplete option {words[0]!a:.40}"
        if words[0] == "--timeout" and not (words[1].isdecimal() and 1 < int(words[1][:6]) <= 3600):
            return f"--timeout takes 2 to 3600 seconds, not {words[1]!a:.40}"
        words = words[2:]
    if len(words) != 10:
        return f"10 arguments are needed from `create` on, {len(words)} were given"
    if words[0] != "create":
        return f"operation {words[0]!a:.40} is not `create`"
    if words[2] not in ("lgssc", "user"):
        return f"a key of type {words[2]!a:.40} is not ours"
    if words[2] == "user" and not words[3].startswith("lgss:"):
        return f"a user key named {words[3]!a:.60} is not ours: those begin with lgss:"
    return f"key serial {words[1]!a:.40} is not a positive number"


def instantiated(key: int, arguments: Sequence[str]) -> bool:
    """Whether there is a key to serve although the front has not said so.

    A front that refuses has rejected the key and logged why.  One that was killed (by
    its alarm, or for want of memory) has perhaps instantiated the key before, and then
    somebody waits for its answer; if not, the kernel rejects it with ENOKEY when the
    front is gone, and nobody but us can tell the administrator.
    """
    try:
        # Waits while the key is under construction: until the kernel has seen the front end.
        keyctl.read(key)
    except OSError as error:
        # These two are found out behind the key's state (docs/protocol.md 7: no read for lgssc).
        if error.errno in (errno.EOPNOTSUPP, errno.EACCES):
            return True
        if error.errno == errno.ENOKEY:
            _log(key, arguments, "killed", KILLED, error.errno)
        return False
    return True


def last_resort(key: int, error: BaseException) -> None:
    """Answer the key when the package itself cannot be loaded, with ELIBACC; or when there
    is no memory, or no process, to do anything better with, with ENOMEM."""
    number, advice = errno.ELIBACC, "reinstall lgss_keyring"
    if isinstance(error, BrokenPipeError):
        number, advice = errno.ENOMEM, f"the process to serve it was killed; {SHORTAGE_HINT}"
    elif short := shortage(error):
        number, advice = short, SHORTAGE_HINT
    # The failure payload of docs/protocol.md 7: u32 0, s32 -errno, u32 no GSS status.
    failure = bytes(4) + (-number).to_bytes(4, sys.byteorder, signed=True) + bytes(4)
    import time

    end = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                keyctl.update(key, failure)
                break
            except OSError as refused:
                # The kernel has not bound its context to the key yet (docs/protocol.md 7).
                if refused.errno != errno.EAGAIN or time.monotonic() > end:
                    raise
                time.sleep(0.01)
        keyctl.set_timeout(key, FAILURE_LIFE)
    except OSError:
        pass  # nobody waits for this key; the line below tells what happened
    finally:
        import syslog

        syslog.openlog("lgss_keyring", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
        syslog.syslog(syslog.LOG_ERR, f"key {key}: {type(error).__name__}: {error}; {advice}")


def _serial(arguments: Sequence[str]) -> int:
    """The key's serial wherever it stands behind `create` or another operation, or 0."""
    words = list(arguments)
    while len(words) > 1 and words[0].startswith("-"):
        words = words[2:]
    text = words[1] if len(words) > 1 else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**31 else 0


def _config(arguments: Sequence[str]) -> str | None:
    """What --config names, if it stands before `create`: what comes behind is the
    requestor's own text."""
    words, config = list(arguments), None
    while len(words) > 1 and words[0] in OPTIONS:
        config = words[1] if words[0] == "--config" else config
        words = words[2:]
    return config


def _log(key: int, arguments: Sequence[str], kind: str, text: str, number: int) -> None:
    try:
        # In a child, so that the caller does not wait for a log either.
        pid = os.fork()
    except OSError:
        pid = -1
    if pid > 0:
        return
    try:
        from lgss_keyring.monitor import upcall

        if pid == 0:
            upcall.daemonize()
        upcall.log_refusal(key, _config(arguments), kind, text, number)
    finally:
        if pid == 0:
            os._exit(1)

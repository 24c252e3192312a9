"""What the front does when there is nothing to negotiate.

:mod:`.main` loads this only when it is needed.  It imports nothing outside this folder,
because it must work when the rest of the installation does not.
"""

from __future__ import annotations

import errno
import os
import time

from lgss_keyring.front import answer, keyctl
from lgss_keyring.front.arguments import DEFAULT_TIMEOUT, Call
from lgss_keyring.front.word import NoWordError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.front.arguments import LogRefusal

USAGE = """\
usage: lgss_keyring [-R REALM] [--config FILE] [--timeout SECONDS] [--lgssd PATH]
                    create KEY TYPE DESC CALLOUT UID GID THREAD PROCESS SESSION

Negotiates a GSS context for a key that request_key(2) is making. Run by
/sbin/request-key for a line of /etc/request-key.d/*.conf, not by hand:
  create lgssc * * /usr/sbin/lgss_keyring %o %k %t %d %c %u %g %T %P %S

  -R, --realm REALM  the realm of the machine's own principals
  --config FILE      configuration (default: /etc/lgss_keyring.toml, if there)
  --timeout SECONDS  life of a `user` key whose negotiation does not end (2 to
                     3600, default 30)
  --lgssd PATH       lgssd's socket (default: /run/lgss/upcall.sock, if there)
  -h, --help         this text

See lgss_keyring(8).
"""
SHORTAGE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})
"""As in :mod:`lgss_keyring.formats.errors`, which this folder must not import; a test
compares the two."""
PATIENCE = 5.0
"""Seconds that the last resort tries to bring its answer to the key."""
WITNESS_FIRST = 0.1
"""Seconds that the witness has to answer for the process that it watched, before the front's
own answer."""
KILLED = (
    "not even instantiated: lgss_keyring was killed, by its alarm (--timeout) or for want of memory; "
    "this machine is overloaded"
)
CHILD_KILLED = "the process to serve it was killed"


def refuse(given: Sequence[str], call: Call, error: Exception, log_refusal: LogRefusal) -> int:
    """Reject the key that ``call`` names, if it names one of ours, and say why.

    ``error`` is what stopped the front: an ``OSError`` of its own calls, a ``NoWordError``
    if its child has ended, or a ``ValueError`` for arguments that are wrong.  Returns the
    exit status: 0 for ``--help``, 2 for wrong usage by hand, else 1.
    """
    if given and given[0] in ("-h", "--help"):
        os.write(1, USAGE.encode())
        return 0
    key = call.serial
    if isinstance(error, BrokenPipeError):
        return _orphaned(key, call, log_refusal)
    if isinstance(error, OSError):
        number = _shortage(error) or error.errno or errno.EIO
        reason = f"{error.filename or 'fork'}: {error.strerror}"
    elif isinstance(error, NoWordError):
        number, reason = errno.ENOMEM, CHILD_KILLED
    else:
        keyctl.alarm(DEFAULT_TIMEOUT)  # the front sets its own for good arguments only
        number = errno.EINVAL
        reason = call.wrong()
    if key:
        try:
            keyctl.assume_authority(key)
            keyctl.reject(key, answer.FAILURE_LIFE, number)
        except OSError as failure:
            reason += f"; and key {key} is not ours to reject: {failure.strerror}"
    if os.isatty(2):
        os.write(2, f"lgss_keyring: {reason}\n{USAGE}".encode())
        return 2
    _log(key, call, f"refused: {reason}", number, log_refusal)
    return 1


def _orphaned(key: int, call: Call, log_refusal: LogRefusal) -> int:
    """Let ``key``, which is instantiated, be answered: the process that serves the upcall was
    killed, as nobody reads the pipe to it.  The witness makes the update, unless it was killed
    as well.  A new process waits for that and makes it otherwise, because the kernel takes no
    update before the front has ended."""
    try:
        if os.fork() == 0:
            try:
                from lgss_keyring.front import witness

                time.sleep(WITNESS_FIRST)
                witness.answer_for_killed(key, call, "a signal", log_refusal)
            finally:
                os._exit(1)
    except OSError:
        pass  # the key's timeout is all that is left
    return 1


def instantiated(key: int, call: Call, log_refusal: LogRefusal) -> bool:
    """Whether ``key`` is instantiated although the front has ended without saying so.

    A front that refuses has rejected the key and logged why.  One that was killed (by
    its alarm, or for want of memory) may have instantiated the key before, and then
    somebody waits for its answer.  If it has not, the kernel rejects the key with ENOKEY when
    the front is gone; the line in the log is written here then.
    """
    try:
        # Waits while the key is under construction: until the kernel has seen the front end.
        keyctl.read(key)
    except OSError as error:
        # The kernel gives these two only after it has looked at the key's state, so the key is
        # instantiated. (Keys of type lgssc cannot be read: docs/protocol.md 7.)
        if error.errno in (errno.EOPNOTSUPP, errno.EACCES):
            return True
        if error.errno == errno.ENOKEY:
            _log(key, call, KILLED, error.errno, log_refusal)
        return False
    return True


def last_resort(key: int, call: Call, error: BaseException) -> None:
    """Answer the key when nothing better can be done: with ELIBACC if the package cannot be
    loaded, with ENOMEM if there is no memory, or no process, to load it with."""
    number, advice = cause(error)
    try:
        answer.update(key, answer.failure(number), time.monotonic() + PATIENCE)
        keyctl.set_timeout(key, answer.FAILURE_LIFE)
    except OSError:
        pass  # nobody waits for this key; the line below tells what happened
    finally:
        _say(f"key {key}: {type(error).__name__}: {error}; {advice} | LGSS_REQUESTOR={call.requestor}")


def _say(text: str) -> None:
    """Log an error to syslog, or to the kernel's log where that does not run."""
    import syslog

    syslog.openlog("lgss_keyring", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_ERR, text)
    if os.path.exists("/dev/log"):
        return
    line = f"<{syslog.LOG_AUTHPRIV | syslog.LOG_ERR}>lgss_keyring[{os.getpid()}]: {text:.900}\n"
    try:
        descriptor = os.open("/dev/kmsg", os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        os.write(descriptor, line.encode("ascii", "backslashreplace"))
        os.close(descriptor)
    except OSError:
        pass  # there is no other place where this could be reported


def cause(error: BaseException) -> tuple[int, str]:
    """The errno for what keeps an upcall from being served at all, and what to do."""
    if isinstance(error, BrokenPipeError):
        return errno.ENOMEM, CHILD_KILLED
    short = _shortage(error)
    if short:
        return short, "this machine is short of memory, processes or descriptors"
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith("/proc"):
        return errno.EIO, "mount proc(5) on /proc"
    return errno.ELIBACC, "reinstall lgss_keyring"


def _shortage(error: BaseException | None) -> int:
    """The errno of a shortage behind ``error``, or 0."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            return errno.ENOMEM if error.errno == errno.EAGAIN else error.errno
        if isinstance(error, MemoryError):
            return errno.ENOMEM
        error = error.__cause__ or error.__context__
    return 0


def _log(key: int, call: Call, reason: str, number: int, log_refusal: LogRefusal) -> None:
    try:
        # In a child, so that the caller does not wait for a log either.
        pid = os.fork()
    except OSError:
        pid = -1
    if pid > 0:
        return
    try:
        log_refusal(key, call, reason, number)
    finally:
        if pid == 0:
            os._exit(1)

"""Becoming the user, with no way back.

A worker that has passed :func:`become` has the user's real, effective and saved
ids, one group, no capability and no_new_privs (docs/architecture.md, "Privilege
separation").  The C program keeps a saved uid 0 to switch back with; here another
process, the monitor, stays root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import resource
import signal

from lgss_keyring.formats.errors import LgssError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

# What request-key gives us, and nothing inherited beyond it: libkrb5 obeys a dozen
# variables (CVE-2009-0360: docs/security.md, "What programs of this kind taught").
ENVIRONMENT = {"HOME": "/", "PATH": "/sbin:/bin:/usr/sbin:/usr/bin"}

DEFAULT_KRB5_CONFIG = "/etc/krb5.conf"
NAMES_AS_THEY_ARE = os.path.join(os.path.dirname(__file__), "krb5-names-as-they-are.conf")

_libc = ctypes.CDLL(None, use_errno=True)


def replace_environment(krb5_config: str, canonicalize: bool = True) -> None:
    """Start over with a fixed environment; ``krb5_config`` (a path, or empty for
    the library's default) becomes KRB5_CONFIG.

    Without ``canonicalize`` a file of ours stands before it: libkrb5 takes a setting from the
    first file that has it.  (To build the principal here would keep the name as well, but then
    libkrb5 would not apply [domain_realm].)
    """
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    if not canonicalize:
        krb5_config = f"{NAMES_AS_THEY_ARE}:{krb5_config or DEFAULT_KRB5_CONFIG}"
    if krb5_config:
        os.environ["KRB5_CONFIG"] = krb5_config


NOGROUP = 65534
"""The gid of nobody (nogroup)."""


def primary_group(uid: int) -> int | None:
    """The primary gid of ``uid`` by passwd(5), None for a user without an entry.  The name service may
    block: call it where a deadline holds."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return None


def become(uid: int, gid: int, enter: Callable[[], None] | None = None) -> None:
    """Become ``uid`` and ``gid`` for good; with uid 0 only the groups change.

    ``enter`` is called before, to go into the user's namespaces: only root can do that, and
    from then on no file is opened until this process is the user.  Raises :class:`LgssError` if
    any privilege of root is left afterwards, whatever the reason (securebits, a security
    module): the caller must end the process then.
    """
    if enter is not None and uid == 0:
        raise LgssError("root enters no namespace: it could not drop anything there", errno=errno.EPERM)
    # Opened before the entering: in the user's mount namespace /proc is what the user has
    # put there.
    status = os.open("/proc/self/status", os.O_RDONLY)
    try:
        if enter is not None:
            enter()
        _drop(uid, gid)
        if uid != 0 and (
            os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or _capable(status)
        ):
            raise LgssError(f"uid {uid} would keep privileges of root", errno=errno.EPERM)
    finally:
        os.close(status)


def _drop(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        # No process of that uid may look into this one. The change of ids has cleared the
        # flag already, unless /proc/sys/fs/suid_dumpable says otherwise.
        _prctl(PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise LgssError(f"cannot become uid {uid}, gid {gid}: {error.strerror}", errno=errno.EPERM) from error


def die_with(parent: int) -> None:
    """Let the kernel end this process (SIGKILL) when ``parent`` ends.

    A change of ids clears this setting (prctl(2)), so it is made again after :func:`become`.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # If the parent has ended just before, no signal comes any more. A process that was
    # forked into a pid namespace sees 0 and cannot tell; its next message finds the socket closed.
    if os.getppid() not in (parent, 0):
        os._exit(1)


def forget_signals() -> None:
    """Undo what the process that forked this one did with signals: here they do what they do by default,
    none is blocked, and no alarm is set."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.setitimer(signal.ITIMER_REAL, 0)


def fork_hidden() -> int:
    """fork(2) into a new pid namespace: the child, its process 1, can name no process of
    ours, and all that it starts ends with it.  Raises OSError."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(ctypes.c_int(CLONE_NEWPID)):
            number = ctypes.get_errno()
            raise OSError(number, f"unshare: {os.strerror(number)}")
        try:
            pid = os.fork()
        except OSError:
            pid = -1
            raise
        finally:
            # Otherwise this process could start no thread any more (clone(2), CLONE_THREAD).
            if pid != 0 and _libc.setns(ctypes.c_int(own), ctypes.c_int(CLONE_NEWPID)):
                number = ctypes.get_errno()
                raise OSError(number, f"setns: {os.strerror(number)}")
        return pid
    finally:
        os.close(own)


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _capable(status: int) -> bool:
    """Whether this process holds a capability or could regain one without execve(2).
    ``status`` is a descriptor of its /proc/self/status."""
    # Read as bytes: for text Python would load a codec from a library that this user may
    # not be able to read.
    for line in os.pread(status, 1 << 16, 0).split(b"\n"):
        if line.startswith((b"CapEff:", b"CapPrm:", b"CapAmb:")) and int(line.split()[1], 16):
            return True
    return False


def stay_undumpable() -> None:
    """Let no other process look into this one, and let it dump no core, which would have its keys.

    Each worker calls this first, the machine's too.  Raises OSError.
    """
    _prctl(PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

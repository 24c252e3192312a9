"""Where a request's credentials live: the namespaces of the process in callout field 10.

docs/security.md, "Whom we believe", is the rule.  For a user's request the worker *enters*
these namespaces while it is still root, and touches no file between that and
:func:`identity.become`.  (setns(2) after setuid(2), as the C program does it, gives EPERM.)
For the machine's credential nobody enters: krb5.conf can name plug-ins to load.  So root
opens only the container's keytab, below /proc/PID/root, and reads nothing else there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from lgss_keyring.formats.errors import CredentialError, Kind, LgssError
from lgss_keyring.system import keyrings
from lgss_keyring.system.processes import Task
from lgss_keyring.worker import exiting, sightings
from lgss_keyring.worker.refusal import refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
ENTERED = {"mnt": CLONE_NEWNS, "net": CLONE_NEWNET}
"""The kinds of namespaces that a worker enters, by their names in /proc/PID/ns."""

home = "self"
"""The process in /proc whose namespaces are ours.  For an lgssd of systemd's it is process 1: a unit may
have a mount namespace of its own, which has the same files."""

SYS_OPENAT2 = 437
"""The same number on every architecture (openat2(2))."""
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10

ENDED = (errno.ESRCH, errno.ENOENT)

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _unreadable(pid: int, error: OSError) -> LgssError:
    if error.errno in ENDED:
        return refusal(pid, "it has ended")
    return refusal(pid, f"not even root may look into it ({error.strerror})", errno.EACCES)


def _is_ours(namespace: os.stat_result, kind: str) -> bool:
    """Whether ``namespace`` is our own one of that ``kind``."""
    own = os.stat(f"/proc/{home}/ns/{kind}")
    return (namespace.st_dev, namespace.st_ino) == (own.st_dev, own.st_ino)


class RequestorNamespaces:
    """The mount and network namespace of one task, held open: a process may change its
    namespaces at any time.  ``different`` has the kinds of which it has another one than ours."""

    def __init__(self, task: Task) -> None:
        """Take hold of the namespaces of ``task``; raises RefusedError."""
        self.task = task
        self.pid = task.pid
        try:
            self._descriptors = {kind: task.open(f"ns/{kind}") for kind in ENTERED}
        except OSError as error:
            raise _unreadable(task.pid, error) from error
        self.different = {
            kind for kind, descriptor in self._descriptors.items() if not _is_ours(os.fstat(descriptor), kind)
        }

    def check_owner(self, uid: int, forked: int) -> int:
        """The task's real uid; raises RefusedError unless that is ``uid`` and the task
        started by ``forked`` (clock ticks since boot).

        A process of root in our own namespaces passes, too: it is a service that does something for
        that user, and there is nothing to enter.
        """
        try:
            real = int(self.task.status()[b"Uid"].split()[0])
            started = self.task.start_time()
        except OSError as error:
            raise _unreadable(self.pid, error) from error
        self.check_alive()
        if real != uid and (real != 0 or self.different):
            raise refusal(self.pid, f"it is of uid {real}, not {uid}", errno.EACCES)
        if started > forked:
            raise refusal(self.pid, "it has started after the request; the number was reused")
        return real

    def check_initial(self) -> None:
        """Raise RefusedError unless the task lives in our own user namespace, which is
        the initial one: request-key(8) runs there."""
        try:
            shared = _is_ours(self.task.stat_of("ns/user"), "user")
        except OSError as error:
            raise _unreadable(self.pid, error) from error
        self.check_alive()
        if not shared:
            raise refusal(self.pid, "it lives in another user namespace, which has no machine", errno.EACCES)

    def check_ours(self) -> None:
        """Raise RefusedError if there is anything to enter: root has no rights to drop afterwards,
        and would read the krb5.conf there as root, with the plug-ins that it names."""
        if self.different:
            raise refusal(
                self.pid, "root's own credentials are looked for in our namespaces only", errno.EACCES
            )

    def check_alive(self) -> None:
        """Raise RefusedError if the task has ended."""
        if self.task.has_ended():
            raise refusal(self.pid, "it has ended")

    def enter(self) -> None:
        """Enter what is different, as root; no file may be touched until the caller has
        become the user.  Raises RefusedError.

        This process holds nothing of the task afterwards: the code that runs from now on is the
        container's (plug-ins of libkrb5, name service modules), and a folder of our /proc
        would lead it by ``..`` to the root of this host.  It gets System V IPC of its own, too: that of
        this host has segments of the same uid (a data base's, say), which are open to that uid.
        """
        try:
            # A kernel without such namespaces (EINVAL) keeps no container from them either.
            if _libc.unshare(ctypes.c_int(CLONE_NEWIPC)) and ctypes.get_errno() != errno.EINVAL:
                raise refusal(self.pid, f"unshare: {os.strerror(ctypes.get_errno())}")
            for kind in self.different:
                if _libc.setns(ctypes.c_int(self._descriptors[kind]), ctypes.c_int(ENTERED[kind])):
                    raise refusal(self.pid, f"setns: {os.strerror(ctypes.get_errno())}")
        finally:
            self.task.close()
            for descriptor in self._descriptors.values():
                os.close(descriptor)

    def open_below(self, path: str) -> int:
        """Open a regular file below the task's root directory for reading, every link
        on the way resolved inside it (openat2(2), RESOLVE_IN_ROOT).

        Raises CredentialError.
        """
        root = self.task.open("root", os.O_PATH | os.O_DIRECTORY)
        try:
            # By O_PATH at first: to open a device for reading can have effects, and a container
            # may have a node of a device that it may not open itself.
            how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            _libc.syscall.restype = ctypes.c_long
            descriptor: int = _libc.syscall(
                ctypes.c_long(SYS_OPENAT2),
                ctypes.c_int(root),
                ctypes.c_char_p(os.fsencode(path.lstrip("/"))),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
        finally:
            os.close(root)
        number = ctypes.get_errno() if descriptor < 0 else 0
        opened = -1
        if not number:
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
                else:
                    number = errno.EINVAL
            except OSError as error:
                number = error.errno or errno.EIO
            finally:
                os.close(descriptor)
        if number:
            raise CredentialError(
                f"cannot open {path} in the mount namespace of process {self.pid}: {os.strerror(number)}",
                errno=errno.ENOKEY,
                kind=Kind.KEYTAB_MISSING if number == errno.ENOENT else Kind.KEYTAB_UNREADABLE,
                hint="a container's own keytab must be there: this host's is not used for it",
            )
        return opened


def foreign(pid: int) -> bool:
    """Whether process ``pid`` may live in another mount or network namespace.  This is a first look
    only, which :func:`find` checks."""
    try:
        return not all(_is_ours(os.stat(f"/proc/{pid}/ns/{kind}"), kind) for kind in ENTERED)
    except OSError:
        return bool(pid)


def _has_lost_namespaces(task: Task, request: UpcallRequest) -> bool:
    """Whether ``request`` is for a user, and ``task`` is exiting and has no namespaces any more."""
    try:
        if request.is_machine or not task.is_exiting():
            return False
        task.stat_of("ns/mnt")
        task.stat_of("ns/net")
    except OSError as error:
        return error.errno == errno.ENOENT and not task.has_ended()
    return False


def _of_exiting(task: Task, request: UpcallRequest, forked: int, folder: str) -> RequestorNamespaces | None:
    """The namespaces in which ``task`` was before it began to exit; None: ours.

    They are ours if an earlier worker has seen it there (:mod:`lgss_keyring.worker.sightings` in
    ``folder``), else those of its living ancestor.  Raises RefusedError.
    """
    try:
        if task.start_time() > forked:
            raise refusal(task.pid, "it has started after the request; the number was reused")
        initial = exiting.is_in_initial_namespaces(task)
        uids = {int(uid) for uid in task.status()[b"Uid"].split()}
        if initial and uids == {request.uid} and sightings.was_seen(folder, task, request.uid):
            return None
        namespaces = RequestorNamespaces(exiting.living_ancestor(task))
        if "mnt" not in namespaces.different and not initial:
            raise refusal(task.pid, "it is exiting, in a pid or user namespace of its own", errno.EACCES)
    except OSError as error:
        raise _unreadable(task.pid, error) from error
    return namespaces


def find(
    request: UpcallRequest, forked: int, containers: bool = True, folder: str = ""
) -> RequestorNamespaces | None:
    """The namespaces in which the credentials of ``request`` live, checked; None: ours.

    ``forked`` is the start time of the front's child (clock ticks since boot), a few milliseconds
    later than the front's: until then the requestor still waited.  Without ``containers``
    nothing but our own namespaces will do.  ``folder``, if it is not empty, is where
    :mod:`lgss_keyring.worker.sightings` are kept.  Raises RefusedError.
    """
    if not request.pid or (request.is_machine and request.requestor_uid != 0):
        return None
    try:
        task = Task(request.pid)
    except OSError as error:
        raise refusal(request.pid, "there is no such process any more") from error
    namespaces = _of_machine(task) if request.is_machine else _of_user(task, request, forked, folder)
    if namespaces is not None and not containers:
        raise refusal(request.pid, "[upcall] containers is off", errno.EACCES)
    return namespaces


def _of_machine(task: Task) -> RequestorNamespaces | None:
    namespaces = RequestorNamespaces(task)
    if "mnt" not in namespaces.different:
        # A keytab is a file: another network namespace alone changes nothing.
        return None
    namespaces.check_initial()
    return namespaces


def _of_user(task: Task, request: UpcallRequest, forked: int, folder: str) -> RequestorNamespaces | None:
    """As :func:`find`.  Takes the requestor's keyrings out of our session keyring if the requestor is not
    the user that it asks for."""
    if _has_lost_namespaces(task, request):
        found = _of_exiting(task, request, forked, folder)
        if found is None:
            return None
        namespaces = found
    else:
        namespaces = RequestorNamespaces(task)
    owner = namespaces.check_owner(request.uid, forked)
    if owner != request.uid:
        # A service of root's that works for this user: its credentials are its own.
        keyrings.unlink_requestor(request.keyrings)
    if request.uid == 0:
        namespaces.check_ours()
    if "mnt" in namespaces.different and os.getpid() != 1:
        raise refusal(request.pid, "it has changed its mount namespace meanwhile")
    if namespaces.different:
        return namespaces
    if folder and owner == request.uid != 0 and namespaces.task is task:
        _remember(task, request.uid, folder)
    return None


def _remember(task: Task, uid: int, folder: str) -> None:
    try:
        if exiting.is_in_initial_namespaces(task):
            sightings.remember(folder, task, uid)
    except OSError:
        pass  # it ends at this moment


def are_plainly_ours(request: UpcallRequest, folder: str) -> bool:
    """Whether the credentials of ``request`` live in our own namespaces, with no doubt: callout field 10
    names no process, or one of that user's, or of root's, in our mount and network namespace.

    If not, :func:`find` decides: what is in doubt there is refused.  ``folder`` as for it.  Raises
    nothing, holds nothing open.
    """
    if not request.pid or (request.is_machine and request.requestor_uid != 0):
        return True
    try:
        task = Task(request.pid)
    except OSError:
        return False
    try:
        if not all(_is_ours(task.stat_of(f"ns/{kind}"), kind) for kind in ENTERED):
            return False
        if request.is_machine:
            return True
        real = int(task.status()[b"Uid"].split()[0])
        # A process of root's is a service that does something for this user; there is nothing to enter.
        if real not in (request.uid, 0) or task.has_ended():
            return False
        if folder and real == request.uid != 0:
            _remember(task, request.uid, folder)
    except (OSError, KeyError):
        return False
    finally:
        task.close()
    return True

"""Where a request's credentials live: the namespaces of the process in field 10.

docs/security.md, "Whom we believe", is the rule.  For a user's request the worker *enters*
them, while still root, touching no file between that and :func:`identity.become`.
setns(2) after setuid(2), as the C program does it, gives EPERM.  For the machine's
credential nobody enters: krb5.conf can name plug-ins to load, so root takes the
container's keytab alone, opened below /proc/PID/root, and reads nothing else there.

A pid is a name that may get another bearer.  So a descriptor of /proc/PID is taken first,
which stays with that one process and cannot be read any more when it has ended; everything
is read through this.  No pidfd: pidfd_open(2) looks the number up in the caller's pid
namespace, and the worker is in one of its own; and kernels before 5.8 have no setns(2) by it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from lgss_keyring.formats.errors import CredentialError, Kind, RefusedError
from lgss_keyring.system import keyrings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
KINDS = {"mnt": CLONE_NEWNS, "net": CLONE_NEWNET}

SYS_OPENAT2 = 437
"""The same on every architecture (openat2(2))."""
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def start_time(stat_line: bytes) -> int:
    """Field 22 of /proc/PID/stat: when the process started, in clock ticks since boot."""
    # The second field is the program's name in parentheses, and may hold anything.
    return int(stat_line[stat_line.rindex(b")") + 1 :].split()[19])


def state(stat_line: bytes) -> bytes:
    """Field 3 of /proc/PID/stat, a letter."""
    return stat_line[stat_line.rindex(b")") + 1 :].split()[0]


def own_start_time() -> int:
    """When this process started."""
    with open("/proc/self/stat", "rb") as file:
        return start_time(file.read())


def _same(theirs: os.stat_result, kind: str) -> bool:
    ours = os.stat(f"/proc/self/ns/{kind}")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


class Place:
    """Another process's namespaces: ``different`` is the set of those that are not ours."""

    def __init__(self, pid: int) -> None:
        """Take hold of ``pid``, which may be a thread's (the kernel's idea of a pid) and
        stands for that thread's process then; raises RefusedError if there is none."""
        self.pid = pid
        try:
            with open(f"/proc/{pid}/status", "rb") as status:
                (line,) = (line for line in status if line.startswith(b"Tgid:"))
            self.pid = pid = int(line.split()[1])
            self._proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        except (OSError, ValueError) as error:
            raise self.refused("there is no such process any more") from error
        try:
            # Open, not named: a process may change its namespaces at any time.
            self._namespaces = {kind: os.open(f"ns/{kind}", os.O_RDONLY, dir_fd=self._proc) for kind in KINDS}
        except OSError as error:
            raise self._out_of_reach(error) from error
        self.different = {
            kind for kind, theirs in self._namespaces.items() if not _same(os.fstat(theirs), kind)
        }

    def refused(self, why: str, number: int = errno.ESRCH) -> RefusedError:
        """The error that says ``why`` this process's namespaces will not do."""
        return RefusedError(
            f"cannot look for credentials where process {self.pid} has its: {why}",
            errno=number,
            kind=Kind.NAMESPACE,
            hint="the process that needs the context must live until it has it, and be its user's",
        )

    def _read(self, name: str) -> bytes:
        try:
            descriptor = os.open(name, os.O_RDONLY, dir_fd=self._proc)
            try:
                return os.read(descriptor, 8192)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._out_of_reach(error) from error

    def _out_of_reach(self, error: OSError) -> RefusedError:
        if error.errno in (errno.ESRCH, errno.ENOENT):
            return self.refused("it has ended")
        return self.refused(f"not even root may look into it ({error.strerror})", errno.EACCES)

    def check_owner(self, uid: int, forked: int) -> int:
        """The process's real uid; raises RefusedError unless that is ``uid`` and the process
        started by ``forked`` (clock ticks).  A process of root in our own namespaces passes, too: one
        that does something for that user, and there is nothing to enter."""
        (line,) = (line for line in self._read("status").split(b"\n") if line.startswith(b"Uid:"))
        real = int(line.split()[1])
        started = start_time(self._read("stat"))
        self.check_alive()
        if real != uid and (real != 0 or self.different):
            raise self.refused(f"it is of uid {real}, not {uid}", errno.EACCES)
        if started > forked:
            raise self.refused("it has started after the request; the number was reused")
        return real

    def check_initial(self) -> None:
        """Raise RefusedError unless the process lives in our own user namespace, which is
        the initial one: request-key(8) runs there."""
        try:
            shared = _same(os.stat("ns/user", dir_fd=self._proc), "user")
        except OSError as error:
            raise self._out_of_reach(error) from error
        self.check_alive()
        if not shared:
            raise self.refused("it lives in another user namespace, which has no machine", errno.EACCES)

    def check_ours(self) -> None:
        """Raise RefusedError if there is anything to enter: root has nothing to drop after
        it, and would read the krb5.conf there, with all that this can load, as itself."""
        if self.different:
            raise self.refused("root's own credentials are looked for in our namespaces only", errno.EACCES)

    def check_alive(self) -> None:
        """Raise RefusedError if the process has ended."""
        # A zombie can still be read.
        if state(self._read("stat")) in b"ZX":
            raise self.refused("it has ended")

    def enter(self) -> None:
        """Enter what is different, as root; no file may be touched until the caller has
        become the user.  Raises RefusedError.

        This holds nothing of the process afterwards: what runs in there is that place's
        code (plug-ins of libkrb5, name service modules), and from a folder of our /proc it
        would come by ``..`` to the root of this host.
        """
        try:
            for kind in self.different:
                if _libc.setns(ctypes.c_int(self._namespaces[kind]), ctypes.c_int(KINDS[kind])):
                    raise self.refused(f"setns: {os.strerror(ctypes.get_errno())}")
        finally:
            for descriptor in (self._proc, *self._namespaces.values()):
                os.close(descriptor)

    def open_below(self, path: str) -> int:
        """Open a regular file below the process's root directory for reading, every link
        on the way resolved inside it (openat2(2), RESOLVE_IN_ROOT).

        Raises CredentialError.
        """
        root = os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=self._proc)
        try:
            # Only its name at first: to open a device does something, and a container
            # may have made a node of one that is closed to it.
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
    """Whether process ``pid`` lives in another mount namespace, at a glance: what is found
    out here is checked by :func:`find`."""
    try:
        return not _same(os.stat(f"/proc/{pid}/ns/mnt"), "mnt")
    except OSError:
        return False


def find(request: UpcallRequest, forked: int, containers: bool = True) -> Place | None:
    """Where the credentials of ``request`` live, checked; None: here, with us.

    ``forked`` is the start time of the front's child, a few milliseconds later than the
    front's: until then the requestor still waited.  Without ``containers`` nothing
    but our own namespaces will do.  Raises RefusedError.  Takes the requestor's keyrings
    away if he is not the user he asks for.
    """
    if not request.pid or (request.is_machine and request.requestor_uid != 0):
        return None
    place = Place(request.pid)
    if not request.is_machine:
        if place.check_owner(request.uid, forked) != request.uid:
            # A service of root's that works for this user: its credentials are its own.
            keyrings.unlink_requestor(request.keyrings)
        if request.uid == 0:
            place.check_ours()
        if "mnt" in place.different and os.getpid() != 1:
            raise place.refused("it has changed its mount namespace meanwhile")
    elif "mnt" in place.different:
        place.check_initial()
    else:
        # A keytab is a file: another network namespace alone changes nothing.
        return None
    if place.different and not containers:
        raise place.refused("[upcall] containers is off", errno.EACCES)
    return place if place.different else None

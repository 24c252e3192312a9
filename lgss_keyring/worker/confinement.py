"""What a worker may use: memory and processes, its own limits and those of the task it serves.

In the namespaces of a container the container's code runs (plug-ins of libkrb5, name service
modules).  It must not get more of this machine than the container has.  So before a worker
enters them, it goes into the cgroups of the task that it serves and takes that task's resource
limits.  If it cannot, the request is refused (docs/security.md, "Containers").
"""

from __future__ import annotations

import errno
import os
import resource

from lgss_keyring.formats.record import Record
from lgss_keyring.system.processes import Task, cgroups_of
from lgss_keyring.worker import limits
from lgss_keyring.worker.refusal import refusal

HINT = (
    "the worker of a request from other namespaces goes into the cgroups of the process that it serves: "
    "mount their hierarchies below /sys/fs/cgroup, or refuse such requests with [upcall] containers = false"
)
OWN_BOUNDS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_DATA: limits.DATA_BYTES,
    resource.RLIMIT_AS: limits.ADDRESS_SPACE_BYTES,
}


def bound() -> None:
    """Bound the memory of this process, and allow it no core file: a core has keys in it."""
    for number, most in OWN_BOUNDS.items():
        _lower(number, most, most)


def _lower(number: int, soft: int, hard: int) -> None:
    """Lower a limit of this process to these values; a limit that is lower already stays."""
    own_soft, own_hard = resource.getrlimit(number)
    hard = _lesser(hard, own_hard)
    resource.setrlimit(number, (_lesser(_lesser(soft, own_soft), hard), hard))


def _lesser(one: int, other: int) -> int:
    finite = [value for value in (one, other) if value != resource.RLIM_INFINITY]
    return min(finite, default=resource.RLIM_INFINITY)


def confine_like(task: Task, uid: int) -> None:
    """Go into the cgroups of ``task`` and take its resource limits, as root.

    ``uid`` is the user that this process will become.  What runs in the namespaces may have a few
    processes more than that user has now.  Raises RefusedError.
    """
    try:
        processes = _tasks_of(uid) + limits.CONTAINER_PROCESSES
        _join_cgroups(task)
        # After the cgroups: the task's limit of descriptors may be so low that no more file can
        # be opened.
        _take_limits(task)
        _lower(resource.RLIMIT_NPROC, processes, processes)
    except (OSError, ValueError) as error:
        raise refusal(task.pid, f"cannot be confined as it is: {error}", errno.EACCES, HINT) from error


# Resource limits.


def _take_limits(task: Task) -> None:
    # Not prlimit(2): it looks the pid up in this worker's own pid namespace. The rows of
    # the file stand in the order of the resources' numbers (proc_pid_limits(5)).
    for number, row in enumerate(task.read("limits").splitlines()[1:]):
        _lower(number, _limit(row[26:47]), _limit(row[47:68]))


def _limit(text: bytes) -> int:
    word = text.strip()
    return resource.RLIM_INFINITY if word == b"unlimited" else int(word)


def _tasks_of(uid: int) -> int:
    """How many processes and threads have ``uid`` as their real uid, about as RLIMIT_NPROC counts."""
    count = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/status", "rb") as file:
                lines = dict(line.split(b":", 1) for line in file)
        except OSError:
            continue  # it has ended
        if int(lines[b"Uid"].split()[0]) == uid:
            count += int(lines.get(b"Threads", b"1"))
    return count


# Cgroups.


class Mount(Record):
    """A mounted cgroup file system: the ``controllers`` and other options of its hierarchy (none for
    version 2), the cgroup that is the ``root`` of this mount, and the ``folder`` where it is
    mounted."""

    controllers: frozenset[bytes]
    root: bytes
    folder: bytes


def _join_cgroups(task: Task) -> None:
    """Go into the cgroups of ``task``, one in each hierarchy.  Raises OSError, ValueError,
    RefusedError."""
    for _ in range(limits.CGROUP_TRIES):
        wanted = cgroups_of(task.read("cgroup"))
        with open("/proc/self/cgroup", "rb") as file:
            present = cgroups_of(file.read())
        different = {hierarchy: path for hierarchy, path in wanted.items() if present.get(hierarchy) != path}
        # Compared again after each move: the task may have been moved meanwhile, and the file
        # system that is mounted there may be another one.
        if not different:
            return
        mounts = mounts_of_cgroups()
        for hierarchy, path in different.items():
            _join(hierarchy, path, mounts)
    raise refusal(task.pid, "it is moved from cgroup to cgroup", errno.EACCES, HINT)


def _join(hierarchy: bytes, path: bytes, mounts: list[Mount]) -> None:
    wanted = frozenset(hierarchy.split(b",")) if hierarchy else frozenset()
    problem = f"no file system of the cgroup hierarchy {hierarchy.decode() or 'v2'} is mounted"
    for mount in mounts:
        below = _below(path, mount.root)
        # Version 2 has no controllers here, nor in /proc/PID/cgroup.
        if below is None or bool(wanted) != bool(mount.controllers) or not wanted <= mount.controllers:
            continue
        try:
            descriptor = os.open(mount.folder + below + b"/cgroup.procs", os.O_WRONLY)
            try:
                os.write(descriptor, b"0")  # 0 is the writing process, in any pid namespace
                return
            finally:
                os.close(descriptor)
        except OSError as error:
            problem = f"cannot move into cgroup {os.fsdecode(path)}: {error.strerror}"
    raise ValueError(problem)


def _below(path: bytes, root: bytes) -> bytes | None:
    """The path of the cgroup ``path`` in a mount whose root is ``root``; None if it is not in there."""
    if b".." in path.split(b"/"):
        return None  # outside of our own cgroup namespace
    if root == b"/":
        return path
    if path == root or path.startswith(root + b"/"):
        return path[len(root) :]
    return None


def mounts_of_cgroups() -> list[Mount]:
    """The cgroup file systems in /proc/self/mountinfo, the last mounted first."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            mount, _, system = line.partition(b" - ")
            kind, _, options = system.split()[:3]
            if kind in (b"cgroup", b"cgroup2"):
                root, folder = (_unescaped(word) for word in mount.split()[3:5])
                controllers = frozenset(options.split(b",")) if kind == b"cgroup" else frozenset()
                found.append(Mount(controllers, root, folder))
    return found[::-1]


def _unescaped(word: bytes) -> bytes:
    """A path of mountinfo: it has blanks, tabs, newlines and backslashes in octal."""
    for octal, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        word = word.replace(octal, character)
    return word

"""The process whose namespaces stand for those of one that is exiting.

Lustre closes files of a process after the kernel has taken its namespaces away, and asks
for a context for that.  /proc/PID/ns/mnt is gone then, but /proc/PID/status can be read.  Without
the context the server would keep the file's handle.

So the process is served in our namespaces if it was seen there before
(:mod:`lgss_keyring.worker.sightings`), and else where its living parent has its credentials, if nothing shows
that it was anywhere else.  docs/security.md, "A process that is exiting", says why no container gets
the host's credentials by that.
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.system.processes import Task, cgroups_of
from lgss_keyring.worker import limits
from lgss_keyring.worker.refusal import refusal

SHARED_STATUS = (b"Uid", b"NoNewPrivs", b"Seccomp", b"CapBnd")
"""Lines of /proc/PID/status that a process has in common with such a parent: all four uids, and
what programs that confine others change."""
SHARED_NAMESPACES = ("user", "pid")
"""These can be read of an exiting process still."""
HINT = (
    "a program that closes its files before it ends needs no such help; nor does one whose parent is a "
    "living process of the same user, in the same cgroups"
)


def living_ancestor(task: Task) -> Task:
    """The parent of ``task``, which is exiting; or, while that is exiting as well, the parent's parent.

    Raises RefusedError unless each is as :func:`_difference` wants it, OSError if one
    has ended meanwhile.
    """
    child = task
    for _ in range(limits.ANCESTORS):
        parent = _parent_of(child)
        difference = "there is none" if parent is None else _difference(child, parent)
        if parent is None or difference:
            raise refusal(
                task.pid,
                f"it is exiting and has no namespaces any more, nor a parent to go by ({difference})",
                errno.ESRCH,
                HINT,
            )
        if not parent.is_exiting():
            return parent
        child = parent
    raise refusal(task.pid, "it is exiting, and so are all that started it", errno.ESRCH, HINT)


def _parent_of(task: Task) -> Task | None:
    number = int(task.status()[b"PPid"])
    if not number:
        return None
    parent = Task(number)
    # Read again: as long as it is the same the parent had not ended before we took hold of
    # the folder, so its number was not given to another process.
    return parent if int(task.status()[b"PPid"]) == number else None


def _difference(child: Task, parent: Task) -> str:
    """In what ``parent`` differs from ``child`` of that which they must share; empty: in nothing."""
    ours, theirs = child.status(), parent.status()
    for name in SHARED_STATUS:
        if ours.get(name) != theirs.get(name):
            return f"{name.decode()} differs"
    for kind in SHARED_NAMESPACES:
        if not _same_file(child.stat_of(f"ns/{kind}"), parent.stat_of(f"ns/{kind}")):
            return f"its {kind} namespace differs"
    if _cgroup_of(child) != _cgroup_of(parent):
        return "its cgroup differs"
    return ""


def _cgroup_of(task: Task) -> bytes:
    """The cgroup (version 2) of ``task``.  In a hierarchy of version 1 the kernel shows / for
    every exiting process, which says nothing."""
    return cgroups_of(task.read("cgroup")).get(b"", b"")


def _same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def is_in_initial_namespaces(task: Task) -> bool:
    """Whether ``task`` has no other pid than the one that we know, and is in our user namespace."""
    ours = _same_file(task.stat_of("ns/user"), os.stat("/proc/self/ns/user"))
    return ours and len(task.status()[b"NSpid"].split()) == 1

"""In which namespaces a process is served that is exiting and has none any more.

Lustre closes files of a process after the kernel has taken its namespaces away, and asks
for a context for that.  /proc/PID/ns/mnt is gone then, but /proc/PID/status can be read.  Without
the context the server would keep the file's handle.

So the process is served in our namespaces if an earlier worker has seen it there
(:mod:`lgss_keyring.worker.sightings`).  Otherwise it is served in those of its living parent, if
nothing shows that it was in others.  docs/security.md, "A process that is exiting", says why no
container gets the host's credentials in this way.
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.system.processes import Task, cgroups_of
from lgss_keyring.worker import limits
from lgss_keyring.worker.refusal import refusal

SHARED_STATUS = (b"Uid", b"NoNewPrivs", b"Seccomp", b"CapBnd")
"""Lines of /proc/PID/status that must be the same for a process and such a parent: all four uids,
and what programs change to confine others."""
SHARED_NAMESPACES = ("user", "pid")
"""Namespaces that both must share.  Those of an exiting process can still be read."""
HINT = (
    "a program that closes its files before it ends needs no such help; nor does one whose parent is a "
    "living process of the same user, in the same cgroups"
)


def living_ancestor(task: Task) -> Task:
    """The nearest ancestor of ``task`` that is not exiting: its parent, else the parent of that, and so
    on.

    Raises RefusedError unless each shares with its child what :func:`_difference` compares,
    OSError if one has ended meanwhile.
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
    # Read again: if it is still the same, the parent had not ended before its folder was opened,
    # so its number was not given to another process.
    return parent if int(task.status()[b"PPid"]) == number else None


def _difference(child: Task, parent: Task) -> str:
    """What ``parent`` and ``child`` must share and do not; empty if there is nothing."""
    of_child, of_parent = child.status(), parent.status()
    for name in SHARED_STATUS:
        if of_child.get(name) != of_parent.get(name):
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
    """Whether ``task`` is in our user namespace, and in our pid namespace rather than one below it."""
    in_our_user_namespace = _same_file(task.stat_of("ns/user"), os.stat("/proc/self/ns/user"))
    return in_our_user_namespace and len(task.status()[b"NSpid"].split()) == 1

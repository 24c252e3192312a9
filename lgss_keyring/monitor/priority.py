"""The priority of ordinary users' upcalls: root's upcalls come first, and then those of users who
have few at work.

If the kernel has autogroups (sched(7)), each session is one, and the nice value of a process counts
only within its session.  So the nice value of the session is set as well.
"""

from __future__ import annotations

import os

NICE = 10
"""The nice value of an ordinary uid's first upcalls."""
NICE_OF_FURTHER = 19
"""The nice value of the further ones.  With 16 at nice 10 another user's context took nine times as
long."""
QUEUE_NICE = 13
"""The nice value of a queue keeper's session, in which all upcalls run that it has started."""
FIRST = 2
"""How many upcalls of a uid are its first ones."""

_of_workers = 0


def of_slot(number: int) -> int:
    """The nice value for the upcall that has slot ``number``."""
    return NICE if number < FIRST else NICE_OF_FURTHER


def lower(nice: int) -> None:
    """Give this process, and those that it starts, the nice value ``nice``."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError:
        pass  # a container may forbid it


def lower_session(nice: int) -> None:
    """Give the autogroup of this process's session the nice value ``nice``."""
    try:
        descriptor = os.open("/proc/self/autogroup", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"%d" % nice)
        finally:
            os.close(descriptor)
    except OSError:
        pass  # a kernel without autogroups, or a container


def lower_workers(nice: int) -> None:
    """Give the workers of this process the nice value ``nice``, and not the process itself:
    it holds their deadlines."""
    global _of_workers
    _of_workers = nice


def begin_worker() -> None:
    """Lower the priority of this process, a worker, as :func:`lower_workers` said."""
    if _of_workers:
        lower(_of_workers)

"""The priority of ordinary users' upcalls."""

from __future__ import annotations

import os

from lgss_keyring.monitor.limits import NICE


def lower() -> None:
    """Let this process, and those that it starts, take second place to root's."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except OSError:
        pass  # a container may forbid it


def lower_session() -> None:
    """The same for all of this process's session, which has an autogroup of its own
    (sched(7)): where there are autogroups, a nice value counts within its session only."""
    try:
        descriptor = os.open("/proc/self/autogroup", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"%d" % NICE)
        finally:
            os.close(descriptor)
    except OSError:
        pass  # a kernel without autogroups, or a container

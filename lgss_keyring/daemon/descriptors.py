"""How many descriptors lgssd may have (RLIMIT_NOFILE).

Each upcall holds one.  By default a process may have 1024, which the upcalls of two users would fill; then
there could be no worker any more, and no connection.
"""

from __future__ import annotations

import resource

from lgss_keyring.daemon import limits


def allow_more() -> None:
    """Raise the limit of this process as far as it needs, and may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.UPCALLS + limits.OTHER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def for_upcalls() -> int:
    """How many upcalls may have a connection, so that descriptors are left for all else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.UPCALLS
    return max(min(limits.UPCALLS, soft - limits.OTHER_DESCRIPTORS), limits.FEWEST_UPCALLS)

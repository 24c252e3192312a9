"""The limit of lgssd's descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import pytest

from lgss_keyring.daemon import descriptors, limits


def in_a_child(soft: int, hard: int, work: Callable[[], int]) -> int:
    """What ``work`` returns in a process with these limits."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.write(writer, str(work()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as result:
        return int(result.read())


@pytest.mark.parametrize(
    ("hard", "allowed", "upcalls"),
    [
        (1024, 1024, 1024 - limits.OTHER_DESCRIPTORS),
        (
            limits.UPCALLS + limits.OTHER_DESCRIPTORS + 1,
            limits.UPCALLS + limits.OTHER_DESCRIPTORS,
            limits.UPCALLS,
        ),
        (300, 300, limits.FEWEST_UPCALLS),
    ],
)
def test_upcalls_leave_descriptors_for_workers_and_connections(hard: int, allowed: int, upcalls: int) -> None:
    """With the usual 1024 two users' upcalls left none: a new worker failed, and lgssd span."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("may not have so many")

    def raised() -> int:
        descriptors.allow_more()
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def room() -> int:
        descriptors.allow_more()
        return descriptors.for_upcalls()

    assert in_a_child(256, hard, raised) == allowed
    assert in_a_child(256, hard, room) == upcalls

"""Attacks of an ordinary user, without any container, on what their upcalls may use."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.support.requestor import Requestor
from tests.support.silent_fuse import SilentFuse
from tests.support.site import USER_UID, Site, user_callout

from .failures import failed
from .waiting import upcall_processes, within

pytestmark = pytest.mark.vm


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_worker_that_no_signal_ends_is_counted_as_long_as_it_is_there(site: Site) -> None:
    """A user mounts a file system (FUSE) in the place of their cache, and it never answers.  Workers would
    pile up without bound if the processes that hold their user's slot did not stay, too."""
    cache = site.realm.ccache_of(USER_UID)
    cache.unlink(missing_ok=True)
    with site.upcalls({"upcall": {"timeout": 2}}) as upcalls, Requestor(USER_UID) as user:
        with SilentFuse(cache, USER_UID, for_all=False) as silent:
            answer = user.ask(upcalls.name(), user_callout())
            failed(answer, upcalls, errno.ETIMEDOUT, "limit", "2 s", limit=4)
            assert silent.asked
            # The witness, the monitor, and the worker, which was killed.
            assert not within(1, lambda: len(upcall_processes(site)) != 3)
            assert sorted(state_of(pid) for pid in upcall_processes(site)) == ["D", "S", "S"]
        assert within(3, lambda: not upcall_processes(site))

"""Attacks of an ordinary user, without any container, on what their upcalls may use."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support import peers
from tests.support.requestor import Requestor
from tests.support.silent_fuse import SilentFuse
from tests.support.site import USER_UID, Site, Upcalls, user_callout

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


FIRST, SUBORDINATES = USER_UID * 1000, 40  # a range of 65536 for each run
MOST = 16 * 3 + 12 * 2
"""Processes: three for each upcall at work, two for each that waits."""


def refused(upcalls: Upcalls) -> int:
    return sum("too many upcalls" in event["message"] for event in upcalls.log())


@pytest.mark.skipif("LGSS_VM" in os.environ, reason="40 upcalls within 8 s, which emulation makes too slow")
def test_subordinate_uids_of_a_user_are_counted_as_one(site: Site, tmp_path: Path) -> None:
    """Most users have 65536 (subuid(5)).  With each one's own 16 upcalls they could fill the memory."""
    ranges = tmp_path / "subuid"
    ranges.write_text(f"somebody:100000:65536\nattacker:{FIRST}:65536\n")
    program = site.stage.variant(
        "subordinate",
        "call = arguments.Call(given)",
        f"from lgss_keyring.system import subordinate\nsubordinate.PATH = {str(ranges)!r}",
    )
    users = [Requestor(FIRST + number) for number in range(SUBORDINATES)]
    try:
        with peers.Silent() as peer:
            rule = {"rpcsec_gss": {"port": peer.port, "reply_timeout": 4}}
            with site.upcalls(rule, "--timeout 8", program=program) as upcalls:
                for user in users:
                    site.realm.kinit("alice", user.uid, user.uid)
                    user.start(upcalls.name(), user_callout(user.uid), wait=9)
                # Those that are refused end at once.
                assert within(5, lambda: refused(upcalls) == SUBORDINATES - 16 - 12), refused(upcalls)
                assert within(1, lambda: len(upcall_processes(site)) <= MOST)
                for user in users:
                    user.result()
                assert within(5, lambda: not upcall_processes(site))
    finally:
        for user in users:
            user.close()

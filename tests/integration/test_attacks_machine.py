"""Attacks on what root keeps for the machine, by requests that any user can forge."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.requestor import Requestor
from tests.support.silent_fuse import SilentFuse
from tests.support.site import LOOPBACK_NID, USER_UID, Site, machine_callout

from .answers import established
from .failures import failed

NAMES = 20


def test_requests_for_many_hosts_leave_no_files(site: Site, root: Requestor, private: Path) -> None:
    """Reverse DNS has a name for most addresses, and field 7 can have any of them."""
    hosts = {f"127.0.1.{number}": f"host{number}.lgss.test" for number in range(NAMES)}
    with site.upcalls({"hosts": hosts}) as upcalls:
        for number in range(NAMES):
            nid = (LOOPBACK_NID & ~0xFFFF) | 0x100 | number
            answer = root.ask(upcalls.name(), machine_callout(target_nid=nid))
            failed(answer, upcalls, errno.EKEYREJECTED, "service-unknown")
    files = {path.name for path in private.iterdir()} - {"seen", "log-lines", "used"}
    assert len(files) == 2, files  # the TGT, and all locks


@pytest.fixture
def silent(site: Site, root_cache: Path) -> Iterator[SilentFuse]:
    """A user's file system in the place of root's default cache, where root has none."""
    with SilentFuse(root_cache, USER_UID) as silent:
        yield silent


def test_users_file_system_in_the_place_of_roots_cache_holds_nothing_up(
    site: Site, root: Requestor, silent: SilentFuse
) -> None:
    """fusermount(1) mounts it there for that user, where user_allow_other is in fuse.conf(5)."""
    with site.upcalls({"upcall": {"machine_wait": 3}}) as upcalls:
        established(root.ask(upcalls.name(), machine_callout()))
    assert silent.asked == 0


def test_users_file_system_holds_no_note_up(
    site: Site, root: Requestor, root_cache: Path, silent: SilentFuse
) -> None:
    """A note names root's cache, and the front looks at it while a caller waits."""
    krb5 = {"keytab": str(site.directory / "none.keytab"), "ccache": str(root_cache)}
    with site.upcalls({"krb5": krb5, "upcall": {"machine_wait": 3}}) as upcalls:
        for _ in range(2):
            assert root.ask(upcalls.name(), machine_callout()).error == errno.ENOKEY
        assert upcalls.log("LGSS_ERROR=")[-1]["LGSS_ERROR"] == "keytab-missing"
    assert silent.asked == 0

"""Attacks on what root keeps for the machine, by requests that any user can forge."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.support.requestor import Requestor
from tests.support.site import LOOPBACK_NID, Site, machine_callout

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
    files = {path.name for path in private.iterdir()} - {"seen", "log-lines"}
    assert len(files) == 2, files  # the TGT, and all locks

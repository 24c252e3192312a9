"""lgssd and its workers with the capabilities that its unit leaves them, and with no memory that is
both written and executed.  (tests/vm/test_lgssd_unit.py has all of the unit's sandbox.)"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.front import known_failure, lgssd_messages
from lgss_keyring.worker import namespaces
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, machine_callout, user_callout

from .fake_lgssd import Child
from .lgssd_process import Daemon
from .lgssd_process import peer as peer
from .library import Peer
from .waiting import within

UNIT = Path(__file__).parents[2] / "systemd" / "lgssd.service"
REFUSING = """\
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1  # from Linux 6.3 on
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def capabilities() -> list[str]:
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    return [name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]


@pytest.fixture
def confined(site: Site, peer: Peer) -> Iterator[Daemon]:
    bounding = ",".join(["-all", *(f"+{name}" for name in capabilities())])
    wrapper = ["setpriv", f"--bounding-set={bounding}", "--no-new-privs", sys.executable, "-c", REFUSING]
    daemon = Daemon(site, peer.port, wrapper=wrapper, timeout=3)
    yield daemon
    daemon.close()


def ask(daemon: Daemon, uid: int, callout: str) -> Child:
    arguments = ["create", "4711", "user", "lgss:x", callout, str(uid), str(uid), "0", "0", "0"]
    message = lgssd_messages.pack_upcall(5, 30, "", str(daemon.config), arguments)
    assert message is not None
    return Child(daemon.upcall_path, message)


def test_users_and_the_machine_are_served(site: Site, confined: Daemon) -> None:
    status = Path(f"/proc/{confined.pid}/status").read_text()
    assert f"CapBnd:\t{0b10000000000011100000:016x}" in status and "NoNewPrivs:\t1" in status
    site.kinit()
    with Requestor(USER_UID) as user:
        # lgssd looks at the namespaces of another user's process.
        assert within(5, lambda: f"Uid:\t{USER_UID}" in Path(f"/proc/{user.pid}/status").read_text())
        for uid, callout in (
            (USER_UID, user_callout(pid=user.pid)),
            (USER_UID, user_callout()),
            (0, machine_callout()),
        ):
            answer = ask(confined, uid, callout).answer()
            assert answer.errno == 0, confined.log_file.read_text()
            assert isinstance(payload.unpack(answer.payload), payload.ContextPayload)


def test_a_worker_that_hangs_is_ended(site: Site, confined: Daemon) -> None:
    """It is another user's process by then."""
    site.kinit()
    site.realm.pause_kdc()
    try:
        assert ask(confined, USER_UID, user_callout()).answer().errno == errno.ETIMEDOUT
        assert within(5, lambda: not confined.children())
    finally:
        site.realm.resume_kdc()


def test_in_a_mount_namespace_of_its_units_it_knows_whose_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the other way round: a process in another mount namespace stands for process 1."""
    other = subprocess.Popen(["unshare", "-m", "sleep", "60"])
    try:
        own = os.getpid()
        assert within(5, lambda: namespaces.foreign(other.pid) and known_failure.is_elsewhere(str(other.pid)))
        assert not namespaces.foreign(own) and not known_failure.is_elsewhere(str(own))
        monkeypatch.setattr(namespaces, "home", str(other.pid))
        monkeypatch.setattr(known_failure, "home", str(other.pid))
        assert namespaces.foreign(own) and known_failure.is_elsewhere(str(own))
        assert not namespaces.foreign(other.pid) and not known_failure.is_elsewhere(str(other.pid))
    finally:
        other.kill()
        other.wait()

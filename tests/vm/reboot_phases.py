"""Before the install, after it and a reboot, after uninstall and after another reboot:
what is there each time.

No file of tests that pytest finds by itself: `check` runs one function after each
step, from the host, as a reboot ends everything inside.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support.requestor import Requestor
from tests.support.site import Site, Upcalls, user_callout

pytestmark = pytest.mark.vm

PROGRAM = Path("/usr/sbin/lgss_keyring")
RULE = Path("/etc/request-key.d/lgssc.conf")
LIBRARY = Path("/usr/lib/lgss_keyring")
PAGES = [Path("/usr/share/man/man8/lgss_keyring.8"), Path("/usr/share/man/man5/lgss_keyring.toml.5")]
UID = 61450


BEFORE = Path("/root/before-install")
# What the machine itself, or the tests, write to all the time.
ELSEWHERE = {
    "/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/systemd",
    "/var/lib/krb5kdc", "/var/lib/sss", "/home", "/opt/lgss-vm", "/root",
}  # fmt: skip


def all_files() -> set[str]:
    """Every file and folder of the system."""
    found = set()
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ELSEWHERE]
        found |= {os.path.join(folder, name) for name in [*folders, *files]}
    return found


def in_state() -> list[str]:
    """What is called after us where programs keep what they need while they run."""
    return [
        os.path.join(folder, name)
        for top in ("/run", "/var", "/tmp")
        for folder, folders, files in os.walk(top)
        for name in [*folders, *files]
        # Not the test machine's own; journald's and tests' folders have other names.
        if "lgss" in name and "lgss-vm" not in name and "testmod" not in name
    ]


def added() -> set[str]:
    """What is there now, but was not before the install."""
    return all_files() - set(BEFORE.read_text().splitlines())


def no_denial() -> None:
    """AppArmor is on, and has denied nothing in any boot; nor has the kernel complained."""
    assert Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    log = subprocess.check_output(
        ["journalctl", "--no-pager", "-o", "cat", "_TRANSPORT=kernel", "+", "_TRANSPORT=audit"]
    )
    for denial in (b'apparmor="DENIED"', b"avc:  denied"):
        assert denial not in log
    for complaint in (b"BUG:", b"WARNING:", b"blocked for more than", b"Out of memory"):
        assert complaint not in log, complaint


def test_before_the_install() -> None:
    BEFORE.write_text("\n".join(sorted(all_files())))
    assert not [path for path in added() if "lgss_keyring" in path]


def test_after_the_reboot_it_works() -> None:
    assert PROGRAM.is_symlink() and PROGRAM.resolve().parents[1] == LIBRARY
    assert RULE.read_text().splitlines()[-1].split()[4] == str(PROGRAM)
    assert all(page.exists() for page in PAGES)
    installed = added()
    assert str(PROGRAM) in installed
    for path in installed:
        status = Path(path).lstat()
        assert status.st_uid == 0
        assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022, path
    # No state of the boot before: it lives in keys and ccaches. The folder is there for lgssd's socket.
    assert in_state() == ["/run/lgss"] and not list(Path("/run/lgss").iterdir())
    with Site() as site, Upcalls(site, {"rpcsec_gss": {"reply_timeout": 30}}, "--timeout 120") as upcalls:
        site.realm.kinit("alice", UID, UID)
        with Requestor(UID) as user:
            answer = user.ask(upcalls.name(), user_callout(UID), wait=100)
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload), upcalls.log()
    # What an upcall notes there for the next ones may vanish at any time.
    assert in_state() == ["/run/lgss"]
    no_denial()


def test_after_uninstall_nothing_is_left() -> None:
    assert subprocess.run(["systemctl", "cat", "lgssd.socket"], capture_output=True).returncode
    assert not added() and not in_state()
    no_denial()


def test_after_another_reboot_still_nothing_is_left() -> None:
    assert not added() and not in_state()
    assert subprocess.run(["systemctl", "is-system-running", "--wait"], timeout=120).returncode == 0
    time.sleep(1)
    no_denial()

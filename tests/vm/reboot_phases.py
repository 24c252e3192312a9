"""Install, reboot, uninstall, reboot: what is there after each.

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

from lgss_keyring import payload
from lgss_keyring.testing.requestor import Requestor
from lgss_keyring.testing.site import Site, Upcalls, user_callout

pytestmark = pytest.mark.vm

PROGRAM = Path("/usr/sbin/lgss_keyring")
RULE = Path("/etc/request-key.d/lgssc.conf")
LIBRARY = Path("/usr/lib/lgss_keyring")
PAGES = [Path("/usr/share/man/man8/lgss_keyring.8"), Path("/usr/share/man/man5/lgss_keyring.toml.5")]
UID = 61450


def ours() -> list[Path]:
    """Whatever is called after us where a system keeps programs, settings and state."""
    found = []
    for top in ("/etc", "/usr", "/var", "/run", "/opt", "/lib"):
        for folder, folders, files in os.walk(top):
            # The test machine's own parts, and the project's source beside them.
            folders[:] = [name for name in folders if name not in ("lgss-vm", "systemd-private")]
            files = [name for name in files if name != "lgss-vm.conf"]
            found += [
                Path(folder, name) for name in [*folders, *files] if "lgss" in name and "testmod" not in name
            ]
    return found


def no_denial() -> None:
    """AppArmor is on, and has denied nothing in any boot; nor has the kernel complained."""
    assert Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    log = subprocess.check_output(
        ["journalctl", "--no-pager", "-o", "cat", "_TRANSPORT=kernel", "+", "_TRANSPORT=audit"]
    )
    for complaint in (b'apparmor="DENIED"', b"avc:  denied", b"BUG:", b"WARNING:", b"blocked for more than"):
        assert complaint not in log


def test_after_the_reboot_it_works() -> None:
    assert PROGRAM.is_symlink() and PROGRAM.resolve() == LIBRARY / "lgss_keyring.py"
    assert RULE.read_text().splitlines()[-1].split()[4] == str(PROGRAM)
    assert all(page.exists() for page in PAGES)
    for path in ours():
        status = path.lstat()
        assert status.st_uid == 0
        assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022, path
    with Site() as site, Upcalls(site, {"rpcsec_gss": {"reply_timeout": 30}}, "--timeout 120") as upcalls:
        site.realm.kinit("alice", UID, UID)
        with Requestor(UID) as user:
            answer = user.ask(upcalls.name(), user_callout(UID), wait=100)
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload), upcalls.log()
    # No state of the boot before, none of this upcall: it lives in keys and ccaches.
    assert not [path for path in ours() if path.parts[1] in ("run", "var")]
    no_denial()


def test_after_uninstall_nothing_is_left() -> None:
    assert not ours()
    no_denial()


def test_after_another_reboot_still_nothing_is_left() -> None:
    assert not ours()
    assert subprocess.run(["systemctl", "is-system-running", "--wait"], timeout=120).returncode == 0
    time.sleep(1)
    no_denial()

"""``make install``: what it puts where, that it works from there, and goes again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lgss_keyring.formats import payload
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, user_callout
from tests.support.stage import CHECKOUT


def make(target: str, destination: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "-C", str(CHECKOUT), target, f"DESTDIR={destination}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_installed_and_taken_away(site: Site, ticket: int, tmp_path: Path) -> None:
    make("install", tmp_path)
    program = tmp_path / "usr/sbin/lgss_keyring"
    rule = (tmp_path / "etc/request-key.d/lgssc.conf").read_text().splitlines()[-1].split()
    assert rule[:5] == ["create", "lgssc", "*", "*", "/usr/sbin/lgss_keyring"]
    assert rule[5:] == ["%o", "%k", "%t", "%d", "%c", "%u", "%g", "%T", "%P", "%S"]
    # No installation brings the rule for `user` keys.
    assert len(list((tmp_path / "etc").rglob("*.conf"))) == 1
    assert not [path for path in tmp_path.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    with site.upcalls(program=program) as upcalls, Requestor(USER_UID) as user:
        answer = user.ask(upcalls.name(), user_callout())
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload)
    make("uninstall", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]


def test_help_names_every_target() -> None:
    done = subprocess.run(["make", "-C", str(CHECKOUT), "help"], capture_output=True, text=True, check=True)
    targets = "setup demo check unit unit-all coverage lint bench install uninstall clean help"
    for target in targets.split():
        assert f"  {target} " in done.stdout

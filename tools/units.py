"""lgssd's units, and the systemd that is to know them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ownership import UNITS, Target


def _is_systemds(target: Target) -> bool:
    """Whether systemd runs here, and this is its machine's installation."""
    return target.top == Path("/") and Path("/run/systemd/system").is_dir()


def _systemctl(*words: str) -> None:
    """Tell systemd.  Where it does not do it people see why, and the files are in their places."""
    try:
        subprocess.run(["systemctl", *words], timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"lgss_keyring: systemctl {' '.join(words)}: {error}", file=sys.stderr)


def reload_units(target: Target) -> None:
    """Let systemd read the units."""
    if target.units() and _is_systemds(target):
        _systemctl("daemon-reload")


def remove_units(target: Target) -> None:
    """Take the units away, stopped and disabled before: no upcall starts lgssd any more."""
    ours = [unit for unit in target.units() if os.path.lexists(unit) and target.is_our_unit(unit)]
    names = [unit.name for unit in ours if unit.name in UNITS]
    if names and _is_systemds(target):
        _systemctl("--quiet", "disable", "--now", *names)
    for unit in ours:
        unit.unlink()
    for folder in {unit.parent for unit in target.units()}:
        for each in (folder, folder.parent):
            # Made by install where nobody had units; another's stay.
            if each.name in ("systemd", "system", "tmpfiles.d") and each.is_dir() and not any(each.iterdir()):
                each.rmdir()
    if names and _is_systemds(target):
        _systemctl("daemon-reload")

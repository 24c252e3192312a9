"""``make install`` and lgssd's units: where they go, and whose they are.  (tests/vm has a systemd that
runs.)"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.installation import Installation

NAMES = ("lgssd.socket", "lgssd-pipe.socket", "lgssd.service")


@pytest.fixture
def system() -> Iterator[Path]:
    folder = runs.folder("system")
    yield folder
    runs.remove(folder)


def test_units_are_installed_for_the_prefix_and_taken_away(system: Path) -> None:
    installation = Installation(system)
    installation.install(PREFIX="/opt/lgss", SYSTEMD="yes")
    units = system / "opt/lgss/lib/systemd/system"
    assert sorted(os.listdir(units)) == sorted(NAMES)
    assert "ExecStart=/opt/lgss/sbin/lgssd" in (units / "lgssd.service").read_text().splitlines()
    assert (system / "opt/lgss/lib/tmpfiles.d/lgss.conf").is_file()
    assert {path.stat().st_mode & 0o777 for path in units.iterdir()} == {0o644}
    # Nothing enables them.
    assert not list(system.rglob("*.wants"))
    # Another program's unit stays.
    (units / "other.service").touch()
    assert not installation.make("uninstall", PREFIX="/opt/lgss").returncode
    assert os.listdir(units) == ["other.service"]
    assert not (system / "opt/lgss/lib/tmpfiles.d").exists()


def test_units_are_left_out_where_there_is_no_systemd(system: Path) -> None:
    installation = Installation(system)
    installation.install(SYSTEMD="no")
    assert not (system / "usr/lib/systemd").exists() and not (system / "usr/lib/tmpfiles.d").exists()


def test_another_programs_unit_is_not_overwritten_nor_removed(system: Path) -> None:
    unit = system / "usr/lib/systemd/system/lgssd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/sbin/their-lgssd\n")
    installation = Installation(system)
    assert str(unit) in installation.refused(SYSTEMD="yes")
    assert not installation.make("uninstall").returncode
    assert "their-lgssd" in unit.read_text()

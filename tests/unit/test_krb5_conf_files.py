"""Which files krb5.conf consists of, and whether a change of any of them is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lgss_keyring.formats.config import Krb5
from lgss_keyring.worker import krb5_conf, limits

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are read")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    folder = tmp_path / "krb5.conf.d"
    folder.mkdir()
    (folder / "site").write_text(f"include {tmp_path}/inner\n")
    (folder / "second.conf").write_text("")
    for name in (".hidden.conf", "backup~", "x.rpmsave"):
        (folder / name).write_text("")
    (tmp_path / "inner").write_text(f"[libdefaults]\ninclude {tmp_path}/krb5.conf\n")
    conf = tmp_path / "krb5.conf"
    conf.write_text(f"includedir {folder}\n[libdefaults]\n include_nothing = x\ninclude {tmp_path}/missing\n")
    return conf


def paths(conf: Path) -> list[str]:
    return [each.partition(" ")[0] for each in krb5_conf.files(Krb5(config=str(conf)))]


@needs_root
def test_all_that_is_included_is_found_once(conf: Path) -> None:
    names = ["krb5.conf", "krb5.conf.d", "krb5.conf.d/second.conf", "krb5.conf.d/site", "inner", "missing"]
    assert paths(conf) == [str(conf.parent / name) for name in names]


@needs_root
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "krb5.conf").write_text("[libdefaults]\n"),
        lambda folder: (folder / "krb5.conf.d" / "second.conf").write_text("#\n"),
        lambda folder: (folder / "inner").write_text("#\n"),
        lambda folder: (folder / "missing").write_text("#\n"),
        lambda folder: (folder / "krb5.conf.d" / "third").write_text("#\n"),
        lambda folder: (folder / "krb5.conf.d" / "site").unlink(),
        lambda folder: os.utime(folder / "inner", (1, 1)),
    ],
)
def test_a_change_is_seen(conf: Path, change: Callable[[Path], object]) -> None:
    before = krb5_conf.files(Krb5(config=str(conf)))
    assert krb5_conf.files(Krb5(config=str(conf))) == before
    assert not krb5_conf.have_changed(before)
    change(conf.parent)
    assert krb5_conf.files(Krb5(config=str(conf))) != before
    assert krb5_conf.have_changed(before)


@needs_root
def test_root_reads_roots_files_only(conf: Path) -> None:
    os.chown(conf, 1234, 1234)
    assert paths(conf) == [str(conf)]


@needs_root
def test_it_is_bounded(conf: Path) -> None:
    conf.write_text("".join(f"include {conf.parent}/{number}\n" for number in range(1000)))
    assert len(paths(conf)) == limits.KRB5_CONF_FILES


def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert krb5_conf.files(Krb5(config=f"{tmp_path}/fifo:{tmp_path}/none"))[1].endswith("/none -")

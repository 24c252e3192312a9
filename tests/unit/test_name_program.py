"""The program that tells the host names of ptl4 NIDs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lgss_keyring.formats.config import Config, Names
from lgss_keyring.formats.errors import ResolutionError
from lgss_keyring.formats.nid import Nid
from lgss_keyring.worker import identity
from lgss_keyring.worker.names import host_name

from .test_identity import in_child, needs_root


def hosts(table: dict[str, str], **names: object) -> Config:
    return Config(hosts=table, names=Names(**names))  # type: ignore[arg-type]


def program(path: Path, text: str, timeout: float = 1) -> Config:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return hosts({}, program=str(path), timeout=timeout)


PTL4 = Nid.parse("255@ptl42")


@needs_root
def test_program_for_ptl4_gets_three_words_and_no_shell(tmp_path: Path) -> None:
    config = program(tmp_path / "name $(id); x", f'echo "$#|$*" > {tmp_path}/words; echo node7.example')
    assert host_name(PTL4, config) == "node7.example"
    assert (tmp_path / "words").read_text() == "3|PTL4LND 0x2 0xff\n"


@needs_root
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo @no such node", "no such node"),
        ("exit 3", "''"),
        ("echo 'a b'", "'a b'"),
        ("head -c 100000 /dev/zero", "host name"),
        ("echo a\n echo b", ""),
    ],
)
def test_program_for_ptl4_that_fails(tmp_path: Path, text: str, said: str) -> None:
    if not said:
        assert host_name(PTL4, program(tmp_path / "p", text)) == "a"  # the first line counts
        return
    with pytest.raises(ResolutionError, match=said) as caught:
        host_name(PTL4, program(tmp_path / "p", text))
    assert caught.value.kind == "no-host-name"


@needs_root
def test_program_for_ptl4_that_hangs_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    for text in ("exec sleep 20", "sleep 20", "sleep 20 & sleep 20"):
        with pytest.raises(ResolutionError) as caught:
            host_name(PTL4, program(tmp_path / "p", text, timeout=0.3))
        assert caught.value.kind == "name-timeout"
    assert time.monotonic() - started < 5


@needs_root
def test_program_for_ptl4_that_is_missing_or_not_roots(tmp_path: Path) -> None:
    with pytest.raises(ResolutionError, match="No such file"):
        host_name(PTL4, hosts({}, program=str(tmp_path / "none")))
    config = program(tmp_path / "p", "echo a")
    (tmp_path / "p").chmod(0o777)
    with pytest.raises(ResolutionError, match="others than root"):
        host_name(PTL4, config)


@needs_root
def test_all_that_leads_to_the_program_is_roots(tmp_path: Path) -> None:
    """Folders above it and links on the way, too: who can replace these can replace it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    config = program(folder / "p", "echo a")
    link = tmp_path / "link"
    link.symlink_to("folder/../folder/p")
    by_link = hosts({}, program=str(link))
    assert host_name(PTL4, config) == host_name(PTL4, by_link) == "a"
    folder.chmod(0o1777)  # sticky: root's file stays root's there
    assert host_name(PTL4, config) == "a"
    for mode, owner in ((0o777, 0), (0o775, 0), (0o755, 61234)):
        os.chown(folder, owner, 0)
        folder.chmod(mode)
        for each in (config, by_link):
            with pytest.raises(ResolutionError, match=f"others than root may write it, by {folder}"):
                host_name(PTL4, each)
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    os.chown(link, 61234, 0, follow_symlinks=False)
    with pytest.raises(ResolutionError, match=f"by {link}"):
        host_name(PTL4, by_link)
    link.unlink()
    link.symlink_to("link")
    with pytest.raises(ResolutionError):
        host_name(PTL4, by_link)


@needs_root
def test_program_is_not_run_by_a_user(tmp_path: Path) -> None:
    config = program(tmp_path / "p", f"touch {tmp_path}/ran; echo a")

    def work() -> str:
        identity.become(61234, 61234)
        return host_name(PTL4, config)

    assert "run by root only" in in_child(work)
    assert not (tmp_path / "ran").exists()

"""Whose a credential cache is, by its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lgss_keyring.worker.creds import cache_owner, user

UID, OTHER = 61391, 61392


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
@pytest.mark.parametrize(
    ("owner", "mode", "safe"),
    [
        (0, 0o1777, True),
        (0, 0o755, True),
        (0, 0o777, False),
        (0, 0o775, False),
        (UID, 0o700, True),
        (UID, 0o1777, True),
        (UID, 0o770, False),
        (OTHER, 0o1777, False),
        (OTHER, 0o755, False),
    ],
)
def test_folder_where_others_can_replace_a_file(tmp_path: Path, owner: int, mode: int, safe: bool) -> None:
    """A cache file in it would be opened by a path that another user can give to another file."""
    cache = tmp_path / "krb5cc_x"
    cache.touch(0o600)
    os.chown(cache, UID, UID)
    os.chown(tmp_path, owner, owner)
    tmp_path.chmod(mode)
    folder = os.fsencode(tmp_path)
    assert cache_owner.is_safe_folder(folder, UID) == safe
    assert list(user._cache_files(folder, UID)) == ([os.fsencode(cache)] if safe else [])


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    assert list(user._cache_files(os.fsencode(tmp_path / "none"), UID)) == []

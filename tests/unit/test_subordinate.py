"""Ranges of subordinate uids."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgss_keyring.system import subordinate


def test_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "subuid"
    monkeypatch.setattr(subordinate, "PATH", str(path))
    assert subordinate.range_of(100000) == -1
    path.write_bytes(b"alice:100000:65536\n# a comment\nbob:x:1\n1002:300000:10\n:::\n\xff:1:" + b"9" * 5000)
    found = [subordinate.range_of(uid) for uid in (99999, 100000, 165535, 300009)]
    assert found == [1, 100000, 100000, 300000]
    assert subordinate.of_range(100000, [99999, 100000, 165535, 300009]) == [100000, 165535]
    path.write_bytes(b"alice:1000:1\n")
    assert subordinate.range_of(100000) == -1

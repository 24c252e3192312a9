"""Whose a credential cache is, by its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lgss_keyring.formats.errors import CredentialError, Kind
from lgss_keyring.system import keyrings
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


@pytest.mark.parametrize(
    ("name", "uid", "searched"),
    [
        (b"KEYRING:old", 5, {(-3, b"old"), (-3, b"_krb_old")}),
        (b"KEYRING:thread:x", 5, {(-1, b"_krb_x")}),
        (b"KEYRING:process:x", 5, {(-2, b"_krb_x")}),
        (b"KEYRING:session:x", 5, {(-3, b"_krb_x")}),
        (b"KEYRING:user:x", 5, {(-4, b"_krb_x")}),
        (b"KEYRING:user:x:one", 5, {(-4, b"_krb_x")}),
        (b"KEYRING:nowhere:x", 5, set()),
    ],
)
def test_where_a_keyring_cache_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, name: bytes, uid: int, searched: set[tuple[int, bytes]]
) -> None:
    """By the search of a keyring, which makes none; and each of these names is enough."""
    asked: set[tuple[int, bytes]] = set()
    there: set[tuple[int, bytes]] = set()

    def search(keyring: int, key_type: str, description: bytes) -> int:
        assert key_type == "keyring"
        asked.add((keyring, description))
        return 77 if (keyring, description) in there else 0

    monkeypatch.setattr(keyrings, "search", search)
    assert not cache_owner.exists(name, uid)
    assert asked == searched
    for place in searched:
        there = {place}
        assert cache_owner.exists(name, uid)


@pytest.mark.parametrize("name", [b"FILE:/nonexistent", b"/nonexistent", b"DIR:/nonexistent", b"KCM:"])
def test_caches_of_other_types_are_made_by_writing_only(name: bytes) -> None:
    assert cache_owner.exists(name, UID)


@pytest.mark.parametrize("name", ["DIR:{}", "DIR::{}/tktx"], ids=["collection", "one cache of it"])
def test_folder_of_a_collection_must_be_the_users(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "collection"
    folder.mkdir()
    own = os.geteuid()
    cache = name.format(folder).encode()
    assert cache_owner.path_of(cache) == str(folder)
    with cache_owner.OwnedCache(cache, own) as opened:
        assert opened == cache
    with pytest.raises(CredentialError, match="is another user's") as caught:
        cache_owner.OwnedCache(cache, own + 1).__enter__()
    assert caught.value.kind == Kind.NO_TICKET
    folder.rmdir()
    with pytest.raises(CredentialError, match="No such file"):
        cache_owner.OwnedCache(cache, own).__enter__()


def test_file_of_a_cache_must_be_the_users(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    file.write_bytes(b"tickets")
    own = os.geteuid()
    for name in (f"FILE:{file}", f"WRFILE:{file}", str(file)):
        with cache_owner.OwnedCache(name.encode(), own) as opened:
            assert Path(os.fsdecode(opened.removeprefix(b"FILE:"))).read_bytes() == b"tickets"
        with pytest.raises(CredentialError, match="is another user's"):
            cache_owner.OwnedCache(name.encode(), own + 1).__enter__()

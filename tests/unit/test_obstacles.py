"""Default caches that libkrb5 must not open, and what is said where it cannot."""

from __future__ import annotations

import errno
import os
import time
import types
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats.errors import CredentialError, Kind
from lgss_keyring.front import fuse
from lgss_keyring.worker import krb5_library, limits
from lgss_keyring.worker.creds import cache_owner, obstacles, user

UID, OTHER = 61391, 61392
CONTEXT: Any = None

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


def before_use(path: Path, kind: str = "FILE:") -> str:
    found = obstacles.before_use(f"{kind}{path}".encode(), UID)
    return f"{found.kind}: {found.reason}" if found else ""


@needs_root
@pytest.mark.parametrize(
    ("owner", "target_owner", "why_not"),
    [
        (UID, UID, ""),
        (0, UID, ""),
        (OTHER, UID, f"belongs to uid {OTHER}"),
        (UID, OTHER, f"belongs to uid {OTHER}"),
        (0, 0, "belongs to root"),
    ],
)
def test_link_to_a_cache(tmp_path: Path, owner: int, target_owner: int, why_not: str) -> None:
    """Another's link could lead elsewhere by the time it is used."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    os.chown(target, target_owner, target_owner)
    link.symlink_to(target)
    os.lchown(link, owner, owner)
    said = before_use(link)
    assert why_not in said and bool(said) == bool(why_not)
    assert not said or said.startswith("cache-unusable: ")


@needs_root
def test_default_cache_of_the_user(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for path in (file, folder):
        os.chown(path, UID, UID)
    assert before_use(file) == "" and before_use(folder, "DIR:") == ""
    assert before_use(folder).endswith("is no regular file")
    assert before_use(file, "DIR:").endswith("is no folder")
    assert before_use(tmp_path / "none").startswith("no-ticket: ")
    os.chown(file, 0, 0)
    assert before_use(file).endswith(f"belongs to root, and uid {UID} cannot replace it")
    assert obstacles.before_use(b"", UID) is None


@pytest.mark.parametrize(
    ("kind", "ended", "told"),
    [
        (Kind.TICKET_EXPIRED, 1000, True),
        (Kind.TICKET_EXPIRED, -1000, False),
        (Kind.TICKET_EXPIRED, None, False),
        (Kind.NO_TICKET, 1000, False),
    ],
)
def test_whose_ticket_has_expired(
    monkeypatch: pytest.MonkeyPatch, kind: str, ended: int | None, told: bool
) -> None:
    creds: Any = types.SimpleNamespace(client="alice@SITE")
    ticket = krb5_library.Ticket(creds, 0, int(time.time()) - (ended or 0))
    monkeypatch.setattr(krb5_library, "cc_resolve", lambda context, name: name)
    monkeypatch.setattr(krb5_library, "tickets_of", lambda cache: [ticket])
    monkeypatch.setattr(krb5_library, "tgt_of", lambda cache: None if ended is None else ticket)
    found = obstacles.behind_failure(CONTEXT, b"FILE:/tmp/krb5cc_5", kind)
    assert (found is not None) == told
    if found is not None:
        assert (found.kind, found.errno, found.cache) == (kind, errno.EKEYEXPIRED, "/tmp/krb5cc_5")
        assert found.reason.startswith("the ticket of alice@SITE in FILE:/tmp/krb5cc_5 expired at ")


def test_times_are_shown_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has its own time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert krb5_library.shown_time(86400) == "1970-01-02 00:00:00 UTC"
    time.tzset()


@needs_root
def test_so_many_cache_files_are_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the user's own, which may be read and written; others' files hide none of them."""
    for number in range(30):
        file = tmp_path / f"krb5cc_{number}"
        file.touch(0o600)
        os.chown(file, UID if number % 3 else OTHER, 0)
    monkeypatch.setattr(limits, "CACHE_FILES", 15)
    assert len(list(user._cache_files(os.fsencode(tmp_path), UID))) == 15
    (tmp_path / "krb5cc_1").chmod(0o400)
    monkeypatch.setattr(limits, "CACHE_FILES", 100)
    assert len(list(user._cache_files(os.fsencode(tmp_path), UID))) == 19
    monkeypatch.setattr(limits, "TMP_ENTRIES", 5)
    assert len(list(user._cache_files(os.fsencode(tmp_path), UID))) <= 5


@pytest.mark.parametrize(
    ("name", "there"),
    [
        (b"KEYRING:persistent:61391", True),
        (b"KEYRING:persistent:61391:x", True),
        (b"KEYRING:persistent:6139", False),
        (b"KEYRING:persistent:613911", False),
        (b"KEYRING:persistent:", True),
    ],
)
def test_persistent_keyring_is_looked_for_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: bytes, there: bool
) -> None:
    """To ask for it would make it."""
    listed = tmp_path / "keys"
    listed.write_text("1f000000 I--Q---  2 perm 1b3f0000 61391 65534 keyring   _persistent.61391: 1\n")
    monkeypatch.setattr(cache_owner, "open", lambda path, mode: listed.open(mode), raising=False)
    assert cache_owner.exists(name, UID) == there
    assert cache_owner.exists(b"KEYRING:persistent:", OTHER) is False


def opened() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_no_file_system_of_a_users_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """(FUSE) Neither for a file nor for its folder; and nothing stays open."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to("file")
    before = opened()
    for path in (file, link):
        descriptor = fuse.open_path(str(path))
        assert os.fstat(descriptor).st_ino == path.lstat().st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(descriptor, 1)
        os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        fuse.open_path(str(tmp_path / "none"))
    assert opened() == before
    with pytest.raises(CredentialError, match="No such file"):
        cache_owner.OwnedCache(b"FILE:" + os.fsencode(tmp_path / "none"), UID).__enter__()

    mounts = tmp_path / "mountinfo"
    asked: list[str] = []

    def open_other(path: str, mode: str) -> Any:
        asked.append(path)
        return open(mounts if path == "/proc/self/mountinfo" else path, mode)

    folder = os.open(tmp_path, os.O_PATH)
    about = Path(f"/proc/self/fdinfo/{folder}").read_text()
    os.close(folder)
    number = about.partition("mnt_id:")[2].split()[0]
    before = opened()
    monkeypatch.setattr(fuse, "open", open_other, raising=False)
    for kind, refused in (("fuse.sshfs", True), ("fuse", True), ("ext4", False)):
        other = f"{number}0 1 0:5 / /x rw - fuse x rw\n"
        mounts.write_text(f"{other}{number} 1 0:5 / /mnt rw shared:1 - {kind} x rw\n{other}")
        if refused:
            with pytest.raises(OSError, match="FUSE") as caught:
                fuse.open_path(str(file))
            assert caught.value.errno == errno.EXDEV
        else:
            os.close(fuse.open_path(str(file)))
        assert opened() == before
    assert len(asked) >= 6


def test_neither_the_file_nor_its_folder_may_be_in_such_a_file_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    before = opened()
    for refused in (tmp_path, file):

        def check(descriptor: int, refused: Path = refused) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(refused):
                raise OSError(errno.EXDEV, "FUSE")

        monkeypatch.setattr(fuse, "_check", check)
        with pytest.raises(OSError, match="FUSE"):
            fuse.open_path(str(file))
        assert opened() == before

"""What is kept of processes that were seen in our namespaces."""

from __future__ import annotations

import os
from pathlib import Path

from lgss_keyring.system.processes import Task
from lgss_keyring.worker import sightings


class Other(Task):
    """This process, with another line in its status or another start time."""

    changes: tuple[bytes, bytes] = (b"", b"")
    later = 0

    def read(self, name: str) -> bytes:
        return super().read(name).replace(*self.changes)

    def start_time(self) -> int:
        return super().start_time() + self.later


def test_only_the_very_process_is_known(tmp_path: Path) -> None:
    folder, task = str(tmp_path / "lgss"), Task(os.getpid())
    assert not sightings.was_seen(folder, task, 5)
    sightings.remember(folder, task, 5)
    assert sightings.was_seen(folder, task, 5)
    assert not sightings.was_seen(folder, task, 6)
    other = Other(os.getpid())
    assert sightings.was_seen(folder, other, 5)
    for changes in ((b"NoNewPrivs:\t0", b"NoNewPrivs:\t1"), (b"CapBnd:\t", b"CapBnd:\tf")):
        other.changes = changes
        assert not sightings.was_seen(folder, other, 5)
    other.changes, other.later = (b"", b""), 1
    assert not sightings.was_seen(folder, other, 5)
    assert (tmp_path / "lgss").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "lgss" / "seen").stat().st_mode & 0o777 == 0o600


def test_folder_that_others_may_write_says_nothing(tmp_path: Path) -> None:
    folder, task = tmp_path / "lgss", Task(os.getpid())
    sightings.remember(str(folder), task, 5)
    folder.chmod(0o770)
    assert not sightings.was_seen(str(folder), task, 5)
    folder.chmod(0o700)
    (folder / "seen").rename(tmp_path / "seen")
    (folder / "seen").symlink_to(tmp_path / "seen")
    assert not sightings.was_seen(str(folder), task, 5)


def test_what_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    sightings.remember(str(tmp_path / "file"), Task(os.getpid()), 5)
    sightings.remember("/proc/none/lgss", Task(os.getpid()), 5)

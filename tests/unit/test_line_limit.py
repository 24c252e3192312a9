"""The lines of one user are limited, over all processes of ours, and what is hidden is counted."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgss_keyring.system import limits, line_limit
from lgss_keyring.system.log import Log

NONE = "/nonexistent"
UID = 1000


class Clock:
    """time.monotonic() as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def new_log(folder: Path, log_level: str = "info", /, **fields: object) -> Log:
    log = Log(log_level, str(folder / "log"), NONE, NONE, folder=str(folder / "lgss"), kmsg=NONE)
    log.bind(**fields)
    return log


def lines(tmp_path: Path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_one_user_writes_20_lines_and_then_one_that_counts_the_rest(tmp_path: Path, clock: Clock) -> None:
    """Each upcall is a process of its own: a Log for each here."""
    for number in range(157):
        new_log(tmp_path, requestor=UID, uid=UID).event("warning", f"failure {number}", always=True)
    shown = lines(tmp_path)
    assert len(shown) == 20
    assert "(more lines of uid 1000 in these 10 s are counted, not shown)" in shown[19]
    assert not any("more lines" in line for line in shown[:19])
    clock.now += 12
    new_log(tmp_path, requestor=UID, uid=UID).event("info", "the next one")
    count, following = lines(tmp_path)[20:]
    assert (
        "uid 1000: at least 137 more lines of its requests are not shown, of the 10 s that began 12 s ago"
        in count
    )
    assert "LGSS_HIDDEN=137" in count and "LGSS_REQUESTOR=1000" in count
    assert "the next one" in following
    new_log(tmp_path, requestor=UID, uid=UID).event("info", "told once")
    assert len(lines(tmp_path)) == 23


def test_processes_share_the_count(tmp_path: Path) -> None:
    pids = []
    for _ in range(8):
        if (pid := os.fork()) == 0:
            try:
                for _ in range(25):
                    new_log(tmp_path, requestor=UID, uid=UID).event("warning", "failure")
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    # One whose slot is locked by another process is shown if the limit is not reached yet.
    assert 20 <= len(lines(tmp_path)) <= 60
    path = tmp_path / "lgss" / "log-lines"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("fields", [{"requestor": 0, "uid": UID}, {"uid": UID}, {"requestor": "?", "uid": 0}])
def test_root_is_not_limited(tmp_path: Path, fields: dict[str, object]) -> None:
    for _ in range(50):
        new_log(tmp_path, **fields).event("warning", "failure")
    assert len(lines(tmp_path)) == 50


def test_errors_are_always_shown(tmp_path: Path) -> None:
    for level in ("warning", "error"):
        for _ in range(50):
            new_log(tmp_path, requestor=UID, uid=UID).event(level, "failure")
    assert len(lines(tmp_path)) == 20 + 50


def test_one_user_hides_neither_anothers_lines_nor_those_of_the_machine(tmp_path: Path) -> None:
    for uid, requestor in ((UID, UID), (UID + 1, UID + 1), (0, UID), (0, UID)):
        for _ in range(50):
            new_log(tmp_path, requestor=requestor, uid=uid).event("warning", f"{uid} of {requestor}")
    for text in (": 1000 of 1000", ": 1001 of 1001", ": 0 of 1000"):
        assert sum(text in line for line in lines(tmp_path)) == 20


def test_two_users_of_one_slot(tmp_path: Path, clock: Clock) -> None:
    """The second one is not counted while the first one's window lasts, and tells its count then."""
    other = UID + limits.LOG_SLOTS
    for uid in (UID, other):
        for _ in range(30):
            new_log(tmp_path, requestor=uid, uid=uid).event("warning", f"failure of {uid}")
    assert len(lines(tmp_path)) == 20 + 30
    clock.now += 10
    new_log(tmp_path, requestor=other, uid=other).event("warning", f"failure of {other}")
    assert "uid 1000: at least 10 more lines" in lines(tmp_path)[50]


def test_level_debug_shows_whole_negotiations(tmp_path: Path) -> None:
    for _ in range(100):
        new_log(tmp_path, "debug", requestor=UID, uid=UID).event("debug", "a step")
    assert len(lines(tmp_path)) == 100


def test_a_count_from_before_the_machine_was_started_again(tmp_path: Path, clock: Clock) -> None:
    for _ in range(30):
        new_log(tmp_path, requestor=UID, uid=UID).event("warning", "failure")
    clock.now = 3.0
    new_log(tmp_path, requestor=UID, uid=UID).event("warning", "first")
    assert "10 more lines" in lines(tmp_path)[20] and "first" in lines(tmp_path)[21]


def test_without_a_folder_everything_is_shown(tmp_path: Path) -> None:
    assert all(line_limit.count(str(tmp_path / "none" / "lgss"), UID, False, 20).shown for _ in range(30))
    assert not list(tmp_path.iterdir())


def test_no_link_and_no_fifo_is_taken_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "log-lines").symlink_to(tmp_path / "elsewhere")
    assert all(line_limit.count(str(tmp_path), UID, False, 20).shown for _ in range(30))
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "log-lines").unlink()
    os.mkfifo(tmp_path / "log-lines")
    assert all(line_limit.count(str(tmp_path), UID, False, 20).shown for _ in range(30))


def test_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log-lines"
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        started = time.monotonic()
        assert all(line_limit.count(str(tmp_path), UID, False, 20).shown for _ in range(30))
        assert time.monotonic() - started < 1
        holder.stdin.close()


def test_the_file_stays_small(tmp_path: Path) -> None:
    for uid in (1, 2**32 - 2, *range(5000, 15000, 7)):
        line_limit.count(str(tmp_path), uid, False, 20)
    assert (tmp_path / "log-lines").stat().st_size <= limits.LOG_SLOTS * 24

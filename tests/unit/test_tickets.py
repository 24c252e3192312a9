"""Which kept tickets are good, and where they are kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.worker import krb5_library, limits
from lgss_keyring.worker.creds.ticket_file import TicketFile, _why_not_roots_alone
from lgss_keyring.worker.krb5_library import Ticket

NO_CREDS: Any = None
HOURS = 3600


@pytest.mark.parametrize(
    ("life", "left", "good"),
    [
        # docs/protocol.md 4: the lesser of 30 minutes and a quarter of its lifetime is left.
        (10 * HOURS, 1800, True),
        (10 * HOURS, 1799, False),
        (10 * HOURS, 10 * HOURS, True),
        (2 * HOURS, 1800, True),
        (2 * HOURS, 1799, False),
        (1000, 250, True),
        (1000, 249, False),
        (4, 1, True),
        (0, 0, False),
        (-4, -1, False),
        (HOURS, -1, False),
        # It begins later: the KDC's clock may be 5 minutes ahead of ours.
        (10 * HOURS, 10 * HOURS + 300, True),
        (10 * HOURS, 10 * HOURS + 301, False),
    ],
)
def test_ticket_that_is_good(life: int, left: int, good: bool) -> None:
    end = 2_000_000_000
    assert Ticket(NO_CREDS, end - life, end).good(now=end - left) == good


def test_ticket_of_a_service_is_good_for_a_time_of_its_own() -> None:
    ticket = Ticket(NO_CREDS, 0, 10 * HOURS)
    assert ticket.good(60, now=10 * HOURS - 60) and not ticket.good(60, now=10 * HOURS - 59)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to others")
@pytest.mark.parametrize(
    ("owner", "mode", "why_not"),
    [
        (0, 0o700, ""),
        (0, 0o755, ""),
        (0, 0o770, "others than root may write there"),
        (0, 0o702, "others than root may write there"),
        (0, 0o1777, "others than root may write there"),
        (61391, 0o700, "it belongs to uid 61391, not to root"),
    ],
)
def test_folder_of_tickets_is_roots_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: int, mode: int, why_not: str
) -> None:
    folder = tmp_path / "tickets"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, owner, 0)
    assert _why_not_roots_alone(str(folder)) == why_not
    file = TicketFile(str(folder), "title")
    Path(file.path).touch(0o600)
    tickets = [Ticket(NO_CREDS, 0, 1)]
    monkeypatch.setattr(krb5_library, "tickets_of", lambda cache: tickets)
    assert file.read(krb5_library.new_context()) == ([] if why_not else tickets)
    if why_not:
        with pytest.raises(PermissionError, match=why_not):
            file.lock()
    else:
        lock = file.lock()
        assert lock is not None
        os.close(lock)


def test_what_is_no_folder_of_tickets(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    assert _why_not_roots_alone(str(folder)) == "No such file or directory"
    folder.mkdir()
    link.symlink_to(folder)
    assert _why_not_roots_alone(str(link)) == "it is no folder"
    link.unlink()
    link.touch(0o600)
    assert _why_not_roots_alone(str(link)) == "it is no folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="the folder must be root's")
def test_one_upcall_at_a_time_gets_a_ticket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Others wait for a bounded time, and then go on without the lock.  Other tickets have other locks."""
    monkeypatch.setattr(limits, "LOCK_SECONDS", 0.05)
    file = TicketFile(str(tmp_path / "tickets"), "title")
    lock = file.lock()
    assert lock is not None
    before = os.listdir("/proc/self/fd")
    started = time.monotonic()
    assert file.lock() is None and time.monotonic() - started >= 0.05
    assert os.listdir("/proc/self/fd") == before
    other = TicketFile(str(tmp_path / "tickets"), "other").lock()
    assert other is not None
    os.close(other)
    os.close(lock)
    lock = file.lock()
    assert lock is not None
    os.close(lock)

"""When the machine's tickets are renewed: the moment, the pauses, and the notes of their use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.worker import limits
from lgss_keyring.worker.creds import renewal, uses
from lgss_keyring.worker.creds.renewal import Due, Failure
from lgss_keyring.worker.creds.ticket_file import TicketFile

HOUR = 3600.0
IDENTITY = ("/etc/krb5.conf", "keytab", "/etc/krb5.keytab", "host/here@TEST", "lustre_mds@there")


def test_moments_of_ten_thousand_nodes_are_spread_over_the_last_quarter() -> None:
    """Ten hours' tickets that all began at the same second: no minute gets more than chance gives it."""
    path, end = "/run/lgss/host_here@TEST.0123456789ab", 10 * HOUR
    moments = []
    for node in range(10_000):
        where = renewal.fraction(f"boot id {node}", path, int(end))
        when, latest = renewal.moment(0.0, end, 1800.0, where)
        assert latest == 9.5 * HOUR and 7.125 * HOUR <= when < latest
        moments.append(when)
    width = 2.375 * HOUR / 100
    slots = [0] * 100
    for when in moments:
        slots[int((when - 7.125 * HOUR) / width)] += 1
    # Chi squared with 99 degrees of freedom: 99 at the mean, above 180 once in a million times.
    assert sum((number - 100) ** 2 / 100 for number in slots) < 180
    assert max(slots) < 160


def test_moment_is_the_same_after_a_restart_and_another_for_each_ticket() -> None:
    seed = renewal.boot_id()
    assert renewal.fraction(seed, "a", 1) == renewal.fraction(renewal.boot_id(), "a", 1)
    assert len({renewal.fraction(seed, path, end) for path in "abc" for end in range(3)}) == 9


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(("life", "margin"), [(10 * HOUR, 1800.0), (HOUR, 1800.0), (40.0, 60.0), (0.0, 60.0)])
def test_moment_is_before_upcalls_get_a_ticket_themselves(life: float, margin: float, where: float) -> None:
    when, latest = renewal.moment(1000.0, 1000.0 + life, margin, where)
    assert 1000 + 0.5 * life <= when <= latest <= 1000 + life
    assert latest == 1000 + life - min(margin, life / 4)


def test_what_was_missed_while_lgssd_was_down_is_spread_over_the_rest() -> None:
    since = 9 * HOUR
    moments = [renewal.moment(0.0, 10 * HOUR, 1800.0, where, since)[0] for where in (0.0, 0.5, 1.0)]
    assert moments == [9 * HOUR, 9.25 * HOUR, 9.5 * HOUR]
    assert renewal.moment(0.0, 10 * HOUR, 1800.0, 0.5, 11 * HOUR)[0] == 9.5 * HOUR


def due(when: float, path: str = "/d") -> Due:
    return Due(
        when, when + HOUR, when + 2 * HOUR, 10 * HOUR, TicketFile(path, "t"), ("cache", "p"), True, ("s",)
    )


def test_pauses_grow_and_are_bounded_and_a_warning_is_told_once_and_in_time() -> None:
    one = due(0.0)
    now, pauses = 0.0, []
    failure: Failure | None = None
    while now < 3 * HOUR:
        before, failure = failure, renewal.after_failure(one, failure, now, "seed", is_refused=False)
        pauses.append(failure.not_before - now)
        # Told by the attempt after which there is none before upcalls wait for the KDC.
        assert failure.is_told == (failure.not_before >= one.latest)
        assert not before or failure.count == before.count + 1
        now = failure.not_before
    assert 7.5 <= pauses[0] <= 15 and all(pause <= 600 for pause in pauses)
    assert all(pause >= 300 for pause in pauses[7:])
    assert renewal.after_failure(one, Failure(0.0, 20, 0.0, False), 0.0, "", True).not_before >= 2000


def test_next_renewal_heeds_the_pauses() -> None:
    first, second = due(100.0, "/a"), due(200.0, "/b")
    assert renewal.next_of([], {}) is None
    assert renewal.next_of([first, second], {}) == (100.0, first)
    failure = Failure(first.end, 1, 300.0, False)
    assert renewal.next_of([first, second], {first.file.path: failure}) == (200.0, second)
    # Of an earlier ticket in that file.
    older = Failure(first.end - 1, 1, 300.0, False)
    assert renewal.next_of([first, second], {first.file.path: older}) == (100.0, first)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path)


def note(folder: str) -> Path:
    return Path(folder) / uses.FOLDER / "name"


def test_only_root_makes_a_note(folder: str) -> None:
    uses.write(folder, "name", IDENTITY, by_root=False)
    assert list(uses.read(folder, time.time())) == []
    uses.write(folder, "name", IDENTITY, by_root=True)
    (use,) = uses.read(folder, time.time())
    assert use.identity == IDENTITY and use.is_current(time.time(), HOUR)
    assert note(folder).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in note(folder).parent.iterdir()] == ["name"]


def age(folder: str, last: float, last_of_root: float) -> None:
    now = time.time()
    content = note(folder).read_bytes()
    note(folder).write_bytes(b"%020d" % int(now - last_of_root) + content[20:])
    os.utime(note(folder), (now - last, now - last))


@pytest.mark.parametrize(
    ("last", "last_of_root", "life", "current"),
    [
        (23 * HOUR, 23 * HOUR, 10 * HOUR, True),
        (25 * HOUR, 25 * HOUR, 10 * HOUR, False),
        (25 * HOUR, 25 * HOUR, 48 * HOUR, True),
        (0, 6 * 24 * HOUR, 10 * HOUR, True),
        # Only users ask for it any more, and they may all be forgers.
        (0, 8 * 24 * HOUR, 10 * HOUR, False),
        (0, 8 * 24 * HOUR, 7 * 24 * HOUR, True),
    ],
)
def test_ticket_is_in_use(folder: str, last: float, last_of_root: float, life: float, current: bool) -> None:
    uses.write(folder, "name", IDENTITY, by_root=True)
    age(folder, last, last_of_root)
    (use,) = uses.read(folder, time.time())
    assert use.is_current(time.time(), life) is current


def test_use_by_a_user_makes_a_note_younger_and_not_roots(folder: str) -> None:
    uses.write(folder, "name", IDENTITY, by_root=True)
    age(folder, 8 * HOUR, 8 * HOUR)
    uses.write(folder, "name", IDENTITY, by_root=False)
    (use,) = uses.read(folder, time.time())
    assert time.time() - use.last < 5 and time.time() - use.last_of_root > 7 * HOUR
    uses.write(folder, "name", IDENTITY, by_root=True)
    (use,) = uses.read(folder, time.time())
    assert time.time() - use.last_of_root < 5 and use.identity == IDENTITY


def test_fresh_note_is_not_written_again(folder: str) -> None:
    uses.write(folder, "name", IDENTITY, by_root=True)
    age(folder, 30, 30)
    before = note(folder).stat().st_mtime_ns
    for by_root in (True, False):
        uses.write(folder, "name", IDENTITY, by_root)
    assert note(folder).stat().st_mtime_ns == before
    # The clock was ahead when it was written.
    os.utime(note(folder), (time.time() + HOUR,) * 2)
    uses.write(folder, "name", IDENTITY, by_root=False)
    assert note(folder).stat().st_mtime <= time.time()


@pytest.mark.parametrize("content", [b"", b"x" * 20, b"1" * 19, b"\0" * 40, os.urandom(50)])
def test_damaged_note_is_passed_over_and_removed_later(folder: str, content: bytes) -> None:
    uses.write(folder, "name", IDENTITY, by_root=True)
    note(folder).write_bytes(content)
    assert list(uses.read(folder, time.time())) == [] and note(folder).exists()
    assert list(uses.read(folder, time.time() + 2 * limits.USE_FRESH_SECONDS)) == []
    assert not note(folder).exists()


def test_old_note_is_removed(folder: str) -> None:
    uses.write(folder, "name", IDENTITY, by_root=True)
    assert list(uses.read(folder, time.time() + 61 * 24 * HOUR)) == [] and not note(folder).exists()


def test_note_that_is_a_link_is_not_followed(folder: str, tmp_path: Path) -> None:
    note(folder).parent.mkdir()
    target = tmp_path / "target"
    target.write_bytes(b"0" * 20)
    note(folder).symlink_to(target)
    with pytest.raises(OSError):
        uses.write(folder, "name", IDENTITY, by_root=True)
    assert target.read_bytes() == b"0" * 20 and list(uses.read(folder, time.time())) == []

"""Notes of known failures: what the front takes from them, and what the monitor writes."""

from __future__ import annotations

import errno
import os
import re
import time
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgss_keyring.formats.config import Config
from lgss_keyring.formats.errors import Kind
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.front import arguments, known_failure
from lgss_keyring.front.arguments import Call
from lgss_keyring.monitor import failures
from lgss_keyring.system import keyrings
from tests.support import table

USER = "0:krb5:1000:1000::-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:0"
MACHINE = USER.replace("1000:1000::", "0:0:r:")
ELSEWHERE = USER.replace("0x20000c0a80105", "0x20000c0a80107")
MGC = "0:krb5:0:0:rmo:-:0:0x5:MGCfe80::{}@tcp:0x6:0"


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir(0o700)
    monkeypatch.setattr(arguments, "NOTES", str(folder))
    return folder


def call(callout: str = USER, uid: str = "1000", options: tuple[str, ...] = ()) -> Call:
    return Call([*options, "create", "5", "lgssc", "x", callout, uid, "0", "0", "0", "0"])


def request_of(given: Call, **values: Any) -> Any:
    fields = given.callout.split(":")
    found = {
        "uid": int(fields[2]),
        "is_machine": bool(fields[4]),
        "requestor_uid": int(given.requestor),
        "pid": 0,
        "keyrings": (0, 0, 0),
    }
    return types.SimpleNamespace(**{**found, **values})


def note(given: Call, kind: str = Kind.NO_TICKET, number: int = errno.ENOKEY, **values: Any) -> int:
    failure = Failed(number, 0, kind, "reason", cache=values.pop("cache", ""))
    is_word = values.pop("is_word", False)
    with_settings = values.pop("settings", Config())
    return failures.note(given, request_of(given, **values), failure, with_settings, is_word)


def look(given: Call) -> tuple[int, int]:
    return known_failure.look(given.failure_note, given.callout)


def test_a_note_is_read_as_it_was_written(notes: Path) -> None:
    assert note(call()) == 2
    number, seconds = look(call())
    # UNTIL is rounded to milliseconds, so 2 s may be left just after the note was written.
    assert number == errno.ENOKEY and seconds in (1, 2)
    (path,) = notes.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.name == "failed-1000"


def test_other_errors_than_enokey_are_never_kept_for_a_second_alone(notes: Path) -> None:
    """The kernel counts whole seconds: some callers would see ENOKEY for it."""
    note(call(), Kind.TICKET_EXPIRED, errno.EKEYEXPIRED)
    assert look(call()) == (errno.EKEYEXPIRED, 2)


@pytest.mark.parametrize("kind", sorted(failures.NOTED))
def test_noted_kinds(notes: Path, kind: str) -> None:
    assert note(call(), kind) == 2 and look(call())[0] == errno.ENOKEY


@pytest.mark.parametrize(
    "kind",
    [Kind.WRONG_KEY, Kind.CLOCK_SKEW, Kind.ACCEPTOR_SILENT, Kind.WORKER_DIED, Kind.REFUSED, Kind.RESOURCES],
)
def test_kinds_that_the_next_attempt_may_change_are_not_noted(notes: Path, kind: str) -> None:
    assert note(call(), kind) == 0 and not list(notes.iterdir())


def test_a_users_note_lives_for_2_seconds(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(call())
    now = known_failure.now()
    monkeypatch.setattr(known_failure, "now", lambda: now + 1.9)
    assert look(call()) == (errno.ENOKEY, 1)
    monkeypatch.setattr(known_failure, "now", lambda: now + 2.1)
    assert look(call()) == (0, 0)


def test_the_machines_lives_twice_as_long_each_time(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, now = call(MACHINE, "0"), known_failure.now()
    lives = []
    for _ in range(5):
        lives.append(note(given, Kind.KEYTAB_MISSING))
        now += lives[-1] + 0.5
        monkeypatch.setattr(known_failure, "now", lambda now=now: now)
    assert lives == [2, 4, 8, 10, 10]
    assert note(given, Kind.KDC_UNREACHABLE, errno.EHOSTUNREACH) == 2
    now += 30
    monkeypatch.setattr(known_failure, "now", lambda: now)
    assert note(given, Kind.KDC_UNREACHABLE, errno.EHOSTUNREACH) == 2
    failures.forget(given)
    assert note(given, Kind.KDC_UNREACHABLE, errno.EHOSTUNREACH) == 2 and len(list(notes.iterdir())) == 1


def test_it_is_forgotten(notes: Path) -> None:
    note(call())
    failures.forget(call())
    assert look(call()) == (0, 0) and not list(notes.iterdir())
    failures.forget(call())


@pytest.mark.parametrize("which", ["config", "krb5", "keytab", "ccache"])
@pytest.mark.parametrize("change", ["write", "remove", "chmod", "replace"])
def test_void_as_soon_as_a_file_changes(notes: Path, tmp_path: Path, which: str, change: str) -> None:
    files = {name: tmp_path / name for name in ("config", "krb5", "keytab", "ccache")}
    for path in files.values():
        path.write_text("x")
    given = call(MACHINE, "0", ("--config", str(files["config"])))
    krb5 = {
        "config": str(files["krb5"]),
        "keytab": f"FILE:{files['keytab']}",
        "ccache": f"FILE:{files['ccache']}",
    }
    note(given, Kind.NOT_IN_KEYTAB, settings=Config(krb5=type(Config().krb5)(**krb5)))
    assert look(given)[0]
    time.sleep(0.02)
    path = files[which]
    if change == "write":
        path.write_text("y")
    elif change == "remove":
        path.unlink()
    elif change == "chmod":
        path.chmod(0o400)  # a keytab that could not be read
    else:
        path.rename(tmp_path / "old")
        path.write_text("x")
    assert look(given) == (0, 0)


def test_void_as_soon_as_a_file_is_there(notes: Path, tmp_path: Path) -> None:
    given = call(MACHINE, "0")
    keytab = tmp_path / "keytab"
    note(given, Kind.KEYTAB_MISSING, settings=Config(krb5=type(Config().krb5)(keytab=str(keytab))))
    assert look(given)[0]
    keytab.write_text("")
    assert look(given) == (0, 0)


@pytest.mark.parametrize(
    ("cache", "looked_at"),
    [
        ("/tmp/krb5cc_x", "/tmp/krb5cc_x"),
        ("/run/user/1000/krb5cc", "/run/user/1000/krb5cc"),
        # Root goes into no folder of a user's, where a file system of theirs could hold it up.
        ("/tmp/mine/krb5cc", "/tmp/krb5cc_1000"),
        ("/tmp/../home/u/fuse", "/tmp/krb5cc_1000"),
        ("/tmp/..", "/tmp/krb5cc_1000"),
        ("/run/user/1001/krb5cc", "/tmp/krb5cc_1000"),
        ("/home/u/krb5cc", "/tmp/krb5cc_1000"),
        ("KEYRING:x", "/tmp/krb5cc_1000"),
        ("", "/tmp/krb5cc_1000"),
        ("/tmp/a\nb", None),
    ],
)
def test_where_root_looks_for_a_users_cache(notes: Path, cache: str, looked_at: str | None) -> None:
    note(call(), cache=cache)
    (path,) = notes.iterdir()
    named = [line.split(" ", 3)[3] for line in path.read_text().split("\n")[2:]]
    assert [each for each in named if not each.startswith("/etc/")] == ([looked_at] if looked_at else [])


def test_a_link_of_somebody_elses_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("x")
    link.symlink_to(target)
    if os.geteuid() == 0:
        assert known_failure.fingerprint(str(link)) == known_failure.fingerprint(str(target))
        os.lchown(link, 61234, 61234)
    assert known_failure.fingerprint(str(link)).endswith(f" {link.lstat().st_ino}")


def test_the_kinds_that_are_noted_are_those_of_the_document() -> None:
    """docs/errors.md: the part about credentials and two more for all servers, three for one."""
    _, _, rest = table.DOCUMENT.read_text().partition("\n## Credentials\n")
    credentials = {row for line in rest.partition("\n## ")[0].splitlines() for row in kinds_of(line)}
    for_all = credentials - {Kind.WRONG_KEY} | {Kind.KRB5_CONF, Kind.KDC_UNREACHABLE}
    for_one = {Kind.SERVICE_UNKNOWN, Kind.SERVICE_LOCKED, Kind.SERVICE_EXPIRED}
    assert {**dict.fromkeys(for_all, False), **dict.fromkeys(for_one, True)} == failures.NOTED


def kinds_of(row: str) -> list[str]:
    """The kinds of a row of a table of docs/errors.md; none for another line."""
    return re.findall(r"`([a-z0-9-]+)`", row.split(" | ")[0]) if row.startswith("| `") else []


@pytest.mark.parametrize(("kind", "one_acceptor"), sorted(failures.NOTED.items()))
def test_a_note_rejects_requests_for_other_acceptors_only_if_it_is_about_all(
    notes: Path, kind: str, one_acceptor: bool
) -> None:
    note(call(), kind)
    assert look(call(ELSEWHERE))[0] == (0 if one_acceptor else errno.ENOKEY)


def test_an_unknown_service_is_about_that_acceptor_only(notes: Path) -> None:
    note(call(), Kind.SERVICE_UNKNOWN, errno.EKEYREJECTED)
    assert look(call()) == (errno.EKEYREJECTED, 2)
    assert look(call(ELSEWHERE)) == (0, 0)
    assert look(call(USER.replace("MDT0000", "MDT0001"))) == (0, 0)
    assert look(call(USER + ":the-client-uuid")) == (0, 0)
    note(call(MGC.format("1"), "0"), Kind.SERVICE_UNKNOWN, errno.EKEYREJECTED)
    assert look(call(MGC.format("1"), "0"))[0] and look(call(MGC.format("2"), "0")) == (0, 0)


def test_a_limit_before_the_word_is_about_that_acceptor_only(notes: Path) -> None:
    given = call(MACHINE, "0")
    assert note(given, Kind.LIMIT, errno.ETIMEDOUT) == 0
    assert note(given, Kind.LIMIT, errno.ETIMEDOUT, is_word=True) == 2
    assert look(given)[0] == errno.ETIMEDOUT
    assert look(call(MACHINE.replace("MDT0000", "MDT0001"), "0")) == (0, 0)


def test_a_request_that_an_ordinary_user_may_have_forged_leaves_no_note(notes: Path) -> None:
    given = call(MACHINE, "1000")
    assert note(given, Kind.SERVICE_UNKNOWN) == 0 and note(given, Kind.LIMIT, is_word=True) == 0
    assert not list(notes.iterdir())


def test_a_process_elsewhere_has_another_truth(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not known_failure.is_elsewhere(str(os.getpid())) and not known_failure.is_elsewhere("0")
    assert known_failure.is_elsewhere("2147483647")
    note(call())
    gone = USER[:-1] + "2147483647"
    assert look(call(gone)) == (0, 0) and look(call(gone + ":uuid")) == (0, 0)
    assert look(call(USER[:-1] + str(os.getpid())))[0] == errno.ENOKEY
    assert note(call(), pid=2147483647) == 0


def test_a_session_with_credentials_leaves_no_note(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyrings, "members", lambda keyring: [7, 8])
    assert note(call(), keyrings=(8, 0, 0)) == 0 and not list(notes.iterdir())
    assert note(call(), keyrings=(9, 0, 0)) == 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, "file", "link"])
def test_nothing_is_written_where_others_may(notes: Path, tmp_path: Path, mode: int | str) -> None:
    if isinstance(mode, int):
        notes.chmod(mode)
    else:
        notes.rmdir()
        if mode == "file":
            notes.write_text("")
        else:
            (tmp_path / "real").mkdir()
            notes.symlink_to(tmp_path / "real")
    assert note(call()) == 0
    assert mode == "file" or not list(notes.iterdir())


def test_a_link_in_the_place_of_a_note_is_neither_followed_nor_written_through(
    notes: Path, tmp_path: Path
) -> None:
    note(call())
    (path,) = notes.iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert look(call()) == (0, 0)
    before = (tmp_path / "elsewhere").read_text()
    note(call(), Kind.TICKET_EXPIRED, errno.EKEYEXPIRED)
    assert not path.is_symlink() and (tmp_path / "elsewhere").read_text() == before


def test_a_note_that_others_could_write_is_ignored(notes: Path) -> None:
    note(call())
    (path,) = notes.iterdir()
    path.chmod(0o622)
    assert look(call()) == (0, 0)
    path.chmod(0o600)
    assert look(call())[0]
    if os.geteuid() == 0:
        os.chown(path, 1000, 1000)
        assert look(call()) == (0, 0)


@pytest.mark.parametrize("what", ["folder", "fifo", "long"])
def test_what_is_no_note_is_ignored(notes: Path, what: str) -> None:
    path = Path(call().failure_note)
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("x" * 100_000)
    assert look(call()) == (0, 0)
    assert note(call()) in (0, 2)  # raises nothing


good = st.sampled_from(["2", "126", "-5", "0", "511", "512", "4095", "9" * 5000, "nan", "inf", "1e400", "*"])
line = st.lists(good, min_size=1, max_size=6).map(" ".join)
damaged = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(line, st.text(max_size=30)), max_size=5).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    ),
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=damaged, callout=st.sampled_from([USER, MACHINE]))
def test_damaged_notes_raise_nothing(notes: Path, data: bytes, callout: str) -> None:
    given = call(callout, "0")
    path = Path(given.failure_note)
    path.write_bytes(data)
    number, seconds = look(given)
    assert (number, seconds) == (0, 0) or (0 < number < 512 and 0 < seconds <= 10)
    assert note(given, Kind.KEYTAB_MISSING) in (2, 4, 8, 10)
    path.unlink()


def test_a_thousand_damaged_notes_stand_in_nobodys_way(notes: Path) -> None:
    for number in range(1005):
        damaged = (b"", b"\xff 1e400 x", b"126 inf 8 x", b"126 nan 8 x", b"126 -inf 8 x")[number % 5]
        (notes / f"failed-{number + 5000}").write_bytes(damaged)
    assert note(call()) == 2 and look(call())[0] == errno.ENOKEY
    assert len(list(notes.iterdir())) == 1


def test_old_notes_make_room(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that ended more than 10 s ago, and no others."""
    monkeypatch.setattr(known_failure, "now", lambda: 130.0)
    for number in range(1000):
        until = 119.9 if number < 3 else 120.1
        (notes / f"failed-{number + 5000}").write_text(f"126 {until} 125 no-ticket\n129 129\n129 129 129 /x")
    assert note(call()) == 2
    left = {path.name for path in notes.iterdir()}
    assert left == {f"failed-{number}" for number in (1000, *range(5003, 6000))}


def test_a_thousand_notes_that_hold_are_the_most(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = known_failure.now()
    monkeypatch.setattr(known_failure, "now", lambda: now)
    for number in range(1000):
        (notes / f"failed-{number + 5000}").write_text(f"126 {now + 5} 8 no-ticket")
    assert (note(call()), look(call())) == (0, (0, 0))
    (notes / "failed-5999").unlink()
    assert note(call()) == 2 and len(list(notes.iterdir())) == 1000


def test_another_users_request_is_refused_whatever_is_noted(notes: Path) -> None:
    note(call())
    assert look(call())[0] and look(call(uid="0"))[0]
    assert call(uid="1001").failure_note == ""
    words = ["create", "5", "user", "lgss:x", MACHINE, "1000", "0", "0", "0", "0"]
    assert Call(words).failure_note == ""

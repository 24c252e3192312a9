"""What a wrong call is told, and the front by hand."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from lgss_keyring.formats import callout, errors
from lgss_keyring.formats.payload import FailurePayload
from lgss_keyring.front import answer, arguments, keyctl, lgssd, lgssd_messages, main, refusal
from lgss_keyring.front.arguments import Call
from lgss_keyring.front.word import NoWordError
from lgss_keyring.monitor import init_channel
from lgss_keyring.system import keyrings, keys
from tests.support.stage import Stage

GOOD = ["create", "5", "user", "lgss:x", "callout", "0", "0", "0", "0", "0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "0 were given"),
        (GOOD[:-1], "9 were given"),
        ([*GOOD, "more"], "11 were given"),
        (["update", *GOOD[1:]], "operation 'update'"),
        (["create", "5", "keyring", *GOOD[3:]], "type 'keyring'"),
        (["create", "5", "user", "other", *GOOD[4:]], "named 'other'"),
        (["create", "5x", *GOOD[2:]], "serial '5x'"),
        (["create", "-5", *GOOD[2:]], "serial '-5'"),
        (["--realm"], "option '--realm'"),
        (["--nonsense", "x", *GOOD], "option '--nonsense'"),
        (["--timeout", "0", *GOOD], "2 to 3600 seconds, not '0'"),
        (["--timeout", "9" * 5000, *GOOD], "2 to 3600 seconds"),
        (["--instantiated", "5", *GOOD], "takes FD:STARTED, not '5'"),
        (["--instantiated", "-1:5", *GOOD], "takes FD:STARTED"),
        (["--instantiated", "5:5:5", *GOOD], "takes FD:STARTED"),
        (["--instantiated", "5:" + "9" * 5000, *GOOD], "takes FD:STARTED"),
    ],
)
def test_reason_says_what_is_wrong(arguments: list[str], words: str) -> None:
    reason = Call(arguments).wrong()
    assert words in reason and len(reason) < 200


@pytest.mark.parametrize(
    ("arguments", "serial"),
    [
        (GOOD, 5),
        (["-R", "X", *GOOD], 5),
        (["update", "7"], 7),
        (["create", "0x5"], 0),
        (["create", "99999999999"], 0),
        (["create", "2147483648"], 0),
        (["create", "\u0665"], 0),
        ([], 0),
    ],
)
def test_serial_is_found_or_none(arguments: list[str], serial: int) -> None:
    assert Call(arguments).serial == serial


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["-R", "X", "--config", "/etc/ours", *GOOD], "/etc/ours"),
        (["create", "5", "lgssc", "--config", "/dev/watchdog", "0", "0", "0", "0", "0"], None),
        (["--config"], None),
    ],
)
def test_text_of_the_requestors_is_no_option(arguments: list[str], config: str | None) -> None:
    """Root opens what it takes for its configuration."""
    assert Call(arguments).options.get("config") == config


def test_help_by_hand() -> None:
    with Stage() as stage:
        done = subprocess.run([stage.program, "--help"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0
    assert done.stdout == refusal.USAGE


@pytest.mark.parametrize(("number", "major"), [(1, 0), (126, 7 << 16), (4095, 2**32 - 1)])
def test_the_fronts_answer_of_failure_is_the_packages(number: int, major: int) -> None:
    """It exists twice, as the last resort must not need the rest of the package."""
    assert answer.failure(number, major) == FailurePayload(number, major).pack()


def test_what_the_front_has_of_its_own_is_what_the_package_has() -> None:
    """The front loads nothing but its own folder, so these stand twice."""
    assert refusal.SHORTAGE == errors.SHORTAGE
    assert main.COLLECTION == keyrings.COLLECTION
    assert arguments.USER_PREFIX == callout.USER_PREFIX
    assert lgssd.GONE == keys.GONE
    assert (lgssd.RECORD_VERSION, lgssd.OBD_NAME_BYTES) == (init_channel.VERSION, init_channel.OBD_NAME_BYTES)
    assert lgssd_messages.REPLY_LIMIT == init_channel.REPLY_SIZE


USER = "0:krb5:1000:1000::-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:0"


@pytest.mark.parametrize(
    ("callout", "uid", "is_machine", "brings", "note"),
    [
        (USER, "1000", False, True, "/run/lgss/failed-1000"),
        (USER, "0", False, False, "/run/lgss/failed-1000"),
        (USER.replace("::", ":rmo:"), "0", True, False, "/run/lgss/failed-machine-mor"),
        (USER.replace("::", ":../x:"), "0", True, False, ""),
        (USER.replace("::", ":rrrr:"), "0", True, False, ""),
        (USER.replace("1000", "../../etc"), "0", False, False, ""),
        (USER.replace("1000", "\u0665"), "0", False, False, ""),
        ("", "1000", False, False, ""),
        ("a:b:1000", "1000", False, True, ""),
    ],
)
def test_what_the_front_sees_of_callout_info(
    callout: str, uid: str, is_machine: bool, brings: bool, note: str
) -> None:
    call = Call(["create", "5", "lgssc", "x", callout, uid, "0", "0", "0", "0"])
    assert (call.is_machine, call.brings_credentials, call.failure_note) == (is_machine, brings, note)


def test_a_note_is_about_one_realm_and_configuration() -> None:
    words = ["create", "5", "lgssc", "x", USER, "0", "0", "0", "0", "0"]
    note = Call(["-R", "X", "--config", "/etc/a/b", *words]).failure_note
    assert note == "/run/lgss/failed-1000-X-%etc%a%b"
    assert Call(["--config", "/" + "x" * 300, *words]).failure_note == ""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What refuse() does: key calls, the alarm and the line of the log."""
    found: list[tuple[object, ...]] = []
    monkeypatch.setattr(keyctl, "alarm", lambda seconds: found.append(("alarm", seconds)))
    monkeypatch.setattr(keyctl, "assume_authority", lambda key: found.append(("authority", key)))
    monkeypatch.setattr(keyctl, "reject", lambda *words: found.append(("reject", *words)))
    monkeypatch.setattr(refusal, "_log", lambda key, call, reason, number, log: found.append(("log", number)))
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    return found


def log_refusal(key: int, call: Call, reason: str, number: int) -> None:
    raise AssertionError("refuse() logs in another process")


def test_call_with_bad_arguments_is_refused_under_an_alarm(calls: list[tuple[object, ...]]) -> None:
    """The key calls may have to wait for a keyring lock that somebody else holds."""
    given = ["update", *GOOD[1:]]
    assert refusal.refuse(given, Call(given), ValueError(), log_refusal) == 1
    assert calls == [("alarm", 30), ("authority", 5), ("reject", 5, 2, errno.EINVAL), ("log", errno.EINVAL)]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "quota", "link"), errno.EDQUOT),
        (BlockingIOError(errno.EAGAIN, "fork"), errno.ENOMEM),
        (NoWordError(), errno.ENOMEM),
    ],
)
def test_refusal_of_a_good_call_does_not_put_its_alarm_off(
    calls: list[tuple[object, ...]], error: Exception, number: int
) -> None:
    """The rule's --timeout bounds its caller's wait from the beginning."""
    assert refusal.refuse(GOOD, Call(GOOD), error, log_refusal) == 1
    assert calls == [("authority", 5), ("reject", 5, 2, number), ("log", number)]


def test_help_touches_no_key(calls: list[tuple[object, ...]], capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal.refuse(["-h", *GOOD], Call(GOOD), ValueError(), log_refusal) == 0
    assert not calls and capfd.readouterr().out == refusal.USAGE

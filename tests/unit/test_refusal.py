"""What a wrong call is told, and the front by hand."""

from __future__ import annotations

import subprocess

import pytest

from lgss_keyring.formats import callout, errors
from lgss_keyring.formats.payload import FailurePayload
from lgss_keyring.front import answer, arguments, lgssd, lgssd_messages, main, refusal
from lgss_keyring.front.arguments import Call
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

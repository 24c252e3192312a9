"""What a wrong call is told, and the front by hand."""

from __future__ import annotations

import subprocess

import pytest

from lgss_keyring.front import refusal
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
    ],
)
def test_reason_says_what_is_wrong(arguments: list[str], words: str) -> None:
    reason = refusal.why(arguments)
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
    assert refusal._serial(arguments) == serial


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
    assert refusal._config(arguments) == config


def test_help_by_hand() -> None:
    with Stage() as stage:
        done = subprocess.run([stage.program, "--help"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0
    assert done.stdout == refusal.USAGE

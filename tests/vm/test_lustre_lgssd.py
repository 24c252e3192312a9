"""The upcalls of test_lustre.py where lgssd runs: its workers negotiate, and the front's child writes
their tokens to init_channel and updates the `lgssc` key.  With both fronts."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lustre import ALICE, CONFIG, ask, established
from server import LustreServer

# Collected here once more, where lgssd is.
from test_lustre import (
    test_a_hundred_at_once_of_ten_users_and_root as test_a_hundred_at_once_of_ten_users_and_root,
)
from test_lustre import test_acceptor_in_another_realm as test_acceptor_in_another_realm
from test_lustre import test_early_updates_are_survived as test_early_updates_are_survived
from test_lustre import test_gssnull as test_gssnull
from test_lustre import test_machine_from_within_a_users_process as test_machine_from_within_a_users_process
from test_lustre import test_mount_as_root as test_mount_as_root
from test_lustre import test_root_asks_for_a_user as test_root_asks_for_a_user
from test_lustre import test_user as test_user
from test_lustre import test_user_without_a_passwd_entry as test_user_without_a_passwd_entry
from testmod import DEBUG_LEVEL

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("testmod_loaded", "front", "lgssd", "own_configuration"),
]
SOCKET, UNIT = "lgssd.socket", "lgssd.service"
FRONTS = ("lgss_keyring-native", "lgss_keyring.py")
LINK = Path("/usr/lib/lgss_keyring/current/front")


@pytest.fixture(scope="module", params=FRONTS)
def front(request: pytest.FixtureRequest) -> Iterator[str]:
    """The front that the rule's program leads to."""
    before = os.readlink(LINK)
    lead_to(request.param)
    yield request.param
    lead_to(before)


@pytest.fixture
def own_configuration() -> Iterator[None]:
    """What a test has configured goes with it."""
    yield
    CONFIG.unlink(missing_ok=True)


def lead_to(name: str) -> None:
    new = LINK.with_name("front.new")
    assert (LINK.parent / name).exists(), f"{name} was not installed"
    new.symlink_to(name)
    new.rename(LINK)


@pytest.fixture(scope="module")
def lgssd(testmod_loaded: None) -> Iterator[None]:
    """lgssd by its socket unit."""
    subprocess.run(["systemctl", "start", SOCKET, UNIT], check=True)
    yield
    subprocess.run(["systemctl", "stop", SOCKET, UNIT], check=True)


def journal(began: str) -> list[str]:
    """What lgssd and its workers have logged since."""
    command = ["journalctl", "--unit", UNIT, "--since", began, "--output", "cat", "--no-pager"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_an_upcall_is_lgssds(server: LustreServer, ticket: None) -> None:
    """Not its own processes', which would have done it as well."""
    before = DEBUG_LEVEL.read_text()
    DEBUG_LEVEL.write_text("2")  # each context has its line
    began = f"@{time.time():.0f}"
    try:
        for _ in range(3):
            established(server, ask(ALICE))
    finally:
        DEBUG_LEVEL.write_text(before)
    lines = journal(began)
    assert any("initiator alice@LGSS.TEST, as the worker of uid 1000 claims" in line for line in lines), lines

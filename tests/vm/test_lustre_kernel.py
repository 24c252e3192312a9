"""What a Lustre kernel's own answers tell of a context, and what they do not."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from lustre import ALICE, ask, parameter
from server import LustreServer
from test_product import journal_of
from testmod import DEBUG_LEVEL

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]

WARNING = 4


@pytest.fixture
def info_level() -> Iterator[None]:
    """Have successes and other quiet lines logged."""
    before = DEBUG_LEVEL.read_text()
    DEBUG_LEVEL.write_text("2")
    yield
    DEBUG_LEVEL.write_text(before)


def test_target_that_is_unmounted_at_once_is_one_quiet_line(info_level: None) -> None:
    """The write gives EINVAL, and then there is no key any more to update."""
    with parameter("unmounted", 1), LustreServer() as server:
        report = ask(0, flags="r", kernel={"timeout_ms": 1})
        assert (report.error, report.stage) == (-errno.ETIMEDOUT, "update")
        (entry,) = journal_of(report.serial)
        assert not server.requests
    assert int(entry["PRIORITY"]) > WARNING, entry["MESSAGE"]


def test_target_that_does_not_exist_is_a_warning(info_level: None) -> None:
    """The same EINVAL, but the mount is still there and waits."""
    with parameter("unmounted", 1), LustreServer():
        report = ask(0, flags="r")
        assert report.stage == "update" and report.error == -errno.EINVAL
        assert int(journal_of(report.serial)[-1]["PRIORITY"]) == WARNING


@pytest.mark.parametrize("uid", [0, ALICE])
def test_update_that_the_kernel_took_is_no_proof(
    server: LustreServer, ticket: None, info_level: None, uid: int
) -> None:
    """The kernel's answer is 0 although it cannot import the context: no more is claimed."""
    with parameter("import_fails", 1):
        report = ask(uid, flags="" if uid else "r")
    assert (report.error, report.stage) == (-errno.EPERM, "update")
    message = journal_of(report.serial)[-1]["MESSAGE"]
    assert "handed to the kernel" in message and "established" not in message

"""The Python program in the place of the native front's child: option --instantiated."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lgss_keyring.formats import payload
from tests.support import peers, table
from tests.support.requestor import Requestor
from tests.support.site import Site, Upcalls, user_callout
from tests.support.stage import Stage

from .answers import established, proven
from .failures import failed
from .waiting import pace

FRONT = """
import os
import sys
import time

sys.path.append({folder!r})
from lgss_keyring.front import keyctl

arguments = sys.argv[1:]
at = arguments.index("create")
key = int(arguments[at + 1])
keyctl.alarm(10)
keyctl.assume_authority(key)
reader, writer = os.pipe()
started = int(time.monotonic() * 1000) {shift}
if os.fork() == 0:
    os.close(writer)
    keyctl.assume_authority(0)
    os.setsid()
    if os.fork():
        os.wait()
        os._exit(0)
    os.set_inheritable(reader, True)
    {child}
    options = ["--lgssd", "", "--instantiated", f"{{reader}}:{{started}}"]
    os.execv({program!r}, [{program!r}, *arguments[:at], *options, *arguments[at:]])
{front}
keyctl.set_timeout(key, 31)
keyctl.instantiate(key, b"\\0", keyctl.get_keyring_id(-3))
os.write(writer, b"1")
os._exit(0)
"""


@contextmanager
def taken_over(
    site: Site, shift: str = "", child: str = "", front: str = "", options: str = "", **settings: object
) -> Iterator[Upcalls]:
    """Upcalls with a front that leaves all the work to the program; ``shift`` is added to the start
    that it tells, ``child`` and ``front`` run before those processes' next step."""
    program = site.stage.script
    folder, source = site.stage.directory / "leaving", site.directory / "leaving.py"
    folder.mkdir(exist_ok=True)
    words = {"folder": str(program.parent), "program": str(program)}
    source.write_text("#!\n" + FRONT.format(shift=shift, child=child, front=front, **words))
    Stage.write_front(source, folder / "leaving.py")
    with site.upcalls(settings, options, program=folder / "leaving.py") as upcalls:  # type: ignore[arg-type]
        yield upcalls


def test_it_serves_the_key(site: Site, user: Requestor) -> None:
    with taken_over(site) as upcalls:
        proven(site, user.ask(upcalls.name(), user_callout()))


@pytest.mark.parametrize("child", ["os.read(reader, 1)", "os.read(reader, 1); os.close(reader)"])
def test_the_fronts_byte_may_be_read_already(site: Site, user: Requestor, child: str) -> None:
    with taken_over(site, child=child) as upcalls:
        established(user.ask(upcalls.name(), user_callout()))


def test_a_front_that_is_killed_before_instantiation_leaves_one_line(site: Site, user: Requestor) -> None:
    with taken_over(site, front="os.kill(os.getpid(), 9)") as upcalls:
        assert user.ask(upcalls.name(), user_callout()).error == errno.ENOKEY
        assert upcalls.log("LGSS_ERROR=")
        time.sleep(0.3)
        (event,) = upcalls.log()
    table.judge("killed", event["LGSS_ERRNO"], event["message"])


def test_a_front_that_is_killed_behind_instantiation_loses_nothing(site: Site, user: Requestor) -> None:
    front = "keyctl.instantiate(key, bytes(1), keyctl.get_keyring_id(-3)); os.kill(os.getpid(), 9)"
    with taken_over(site, front=front) as upcalls:
        established(user.ask(upcalls.name(), user_callout()))


def test_deadlines_count_from_the_start_of_the_front(site: Site, user: Requestor) -> None:
    with peers.Silent() as peer:
        settings = {"port": peer.port, "reply_timeout": 30}
        late = pace.whole(2)
        options, shift = f"--timeout {10 + late}", "- 9000"
        with taken_over(site, shift, options=options, rpcsec_gss=settings) as upcalls:
            answer = user.ask(upcalls.name(), user_callout(), wait=10 + late)
            failed(answer, upcalls, errno.ETIMEDOUT, "limit", "--timeout in the request-key rule", late + 1)


@pytest.mark.parametrize(("shift", "is_served"), [("+ 10**9", True), ("- 10**4 * 10", False)])
def test_no_start_is_believed_that_cannot_be(
    site: Site, user: Requestor, shift: str, is_served: bool
) -> None:
    """One in the future is now; for one that is long ago the time is over, and the key is told."""
    with taken_over(site, shift) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
    if is_served:
        established(answer)
    else:
        assert payload.unpack(answer.data) == payload.FailurePayload(errno.ETIMEDOUT, 0)


def test_a_rule_with_the_internal_option_holds_nobody_up_for_ever(site: Site, user: Requestor) -> None:
    options = "--instantiated 9:1 --timeout 2"
    with site.upcalls(options=options, program=site.stage.script) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
    assert answer.error == errno.ENOKEY and answer.blocked < pace(4)

"""The word that the front waits for: what fails before it fails request_key(2) itself."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import table
from tests.support.requestor import Requestor
from tests.support.site import Site, machine_callout, user_callout
from tests.support.stage import CHECKOUT, Stage

from .answers import established
from .failures import failed
from .waiting import pace

_numbers = itertools.count()


def without_tickets(site: Site, **settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of a machine that has kept no ticket."""
    folder = {"ccache_directory": str(site.directory / f"no-tickets-{next(_numbers)}")}
    return {**settings, "krb5": {**folder, **settings.get("krb5", {})}}


@contextmanager
def silent_kdc(site: Site) -> Iterator[None]:
    site.realm.pause_kdc()
    try:
        yield
    finally:
        site.realm.resume_kdc()


def test_without_a_keytab_request_key_fails_in_a_second(site: Site, root: Requestor) -> None:
    with site.upcalls(without_tickets(site, krb5={"keytab": "/nonexistent"})) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        assert (answer.error, answer.key) == (errno.ENOKEY, 0) and pace.met(answer.blocked, 1)
        failed(
            answer, upcalls, errno.ENOKEY, "keytab-missing", "further requests get the same answer for 2 s"
        )


@pytest.mark.parametrize(
    ("wait", "options", "seconds"), [(1, "", 1), (2, "", 2), (60, "--timeout 3", 2)], ids=str
)
def test_silent_kdc_and_no_ticket(site: Site, root: Requestor, wait: int, options: str, seconds: int) -> None:
    """The word comes after machine_wait, and before the front's alarm ends it after --timeout."""
    settings = without_tickets(site, upcall={"machine_wait": pace.whole(wait)})
    with site.upcalls(settings, options) as upcalls, silent_kdc(site):
        answer = root.ask(upcalls.name(), machine_callout())
        words = "--timeout" if options else "[upcall] machine_wait sets this limit"
        limit = seconds + (0.9 if options else 1)
        message = failed(answer, upcalls, errno.ETIMEDOUT, "limit", words, limit)
        assert answer.error == errno.ETIMEDOUT and answer.blocked > seconds - 0.2
        assert "getting a ticket for lustre_root/localhost" in message


def test_what_the_requestor_may_not_have_fails_before_instantiation(site: Site, user: Requestor) -> None:
    with site.upcalls() as upcalls:
        answer = user.ask(upcalls.name(), machine_callout())
        assert answer.error == errno.EACCES
        failed(answer, upcalls, errno.EACCES, "refused")


def test_the_key_is_instantiated_when_the_credential_is_there(site: Site, root: Requestor) -> None:
    with site.upcalls(without_tickets(site)) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        established(answer)
        messages = [event["message"] for event in upcalls.events(answer.key)]
    order = ["getting a ticket for", "instantiated, the caller goes on", "leg 1:"]
    found = [next(at for at, text in enumerate(messages) if each in text) for each in order]
    assert found == sorted(found), messages


def test_a_child_that_is_killed_before_its_word_is_answered_at_once(site: Site, root: Requestor) -> None:
    program = site.stage.variant("no_word", "serve(key, call, front)", "os.kill(os.getpid(), 9)")
    with site.upcalls(program=program) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        assert answer.error == errno.ENOMEM and pace.met(answer.blocked, 0.5)
        (event,) = upcalls.failures()
        table.judge("resources", event["LGSS_ERRNO"], event["message"])
        assert "the process to serve it was killed" in event["message"]


def test_a_witness_that_is_killed_before_the_word_is_answered_at_once(site: Site, root: Requestor) -> None:
    program = site.stage.variant("no_witness", "server = os.fork()", "os.kill(os.getpid(), 9)")
    with site.upcalls(program=program) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        assert answer.error == errno.ENOMEM and pace.met(answer.blocked, 0.5)
        assert upcalls.log("LGSS_ERROR=resources")


@pytest.mark.parametrize("moment", ["number, seconds = word.hear", "keyctl.set_timeout("])
def test_a_front_that_is_killed_about_the_word_leaves_one_line(
    site: Site, root: Requestor, moment: str
) -> None:
    name = "killed_waiting" if "hear" in moment else "killed_after"
    program = site.stage.variant(name, moment, "os.kill(os.getpid(), 9)")
    with site.upcalls(program=program) as upcalls:
        assert root.ask(upcalls.name(), machine_callout()).error == errno.ENOKEY
        assert upcalls.log("LGSS_ERROR=")
        time.sleep(0.5)
        events = [event for event in upcalls.log() if "LGSS_ERROR" in event]
        assert len(events) == 1, events
    table.judge("killed", events[0]["LGSS_ERRNO"], events[0]["message"])


def nested_request(site: Site, name: str, description: str, callout: str | None) -> tuple[Path, Path]:
    """A front whose child requests another key before it serves its own, and the file for the
    errno that this gives."""
    report = site.directory / f"{name}.errno"
    raw = None if callout is None else callout.encode()
    statement = (
        "import ctypes\n"
        f"found = keyctl._keyutils.request_key(b'user', {description.encode()!r}, {raw!r}, -3)\n"
        "number = 0 if found > 0 else ctypes.get_errno()\n"
        "found > 0 and keyctl.set_timeout(found, 2)\n"
        f"open({str(report)!r}, 'w').write(str(number))"
    )
    return site.stage.variant(name, "serve(key, call, front)", statement), report


def bare(site: Site) -> Path:
    program = site.stage.directory / "bare.py"
    Stage.write_front(CHECKOUT / "bench" / "bare.py", program)
    return program


def test_a_key_that_is_requested_within_an_upcall_is_made(site: Site, user: Requestor) -> None:
    """As Lustre may while a process writes to init_channel. With the authority that the kernel has
    revoked meanwhile it would fail with EKEYREVOKED."""
    with site.upcalls(program=bare(site), arguments="%o %k") as inner:
        program, report = nested_request(site, "nested", inner.name(), "x")
        with site.upcalls(program=program) as upcalls:
            established(user.ask(upcalls.name(), user_callout()))
    assert os.strerror(int(report.read_text())) == os.strerror(0)


def test_before_the_word_nothing_searches_the_requestors_keyrings(site: Site, root: Requestor) -> None:
    """The child has no authority: with it a search covers what the requestor has."""
    root.run(["keyctl", "add", "user", "lgss-requestors-own", "secret", "@s"])
    program, report = nested_request(site, "searching", "lgss-requestors-own", None)
    with site.upcalls(program=program) as upcalls:
        established(root.ask(upcalls.name(), machine_callout()))
    assert int(report.read_text()) == errno.ENOKEY

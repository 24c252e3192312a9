"""Sixty upcalls of which some process is killed: each is answered, and each failure has a line."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest

from lgss_keyring.formats import payload
from tests.support.requestor import Answer, Requestor
from tests.support.site import Site, Upcalls, machine_callout, user_callout

from .waiting import pace, upcall_processes, within

ANSWERED = 2.0
"""Seconds within which each must have its answer."""


def kill_one(site: Site, chance: random.Random) -> int:
    """Kill a process of the upcall, if there is any; returns how many there were."""
    processes = upcall_processes(site)
    if processes:
        try:
            os.kill(chance.choice(processes), 9)
        except ProcessLookupError:
            return 0
    return len(processes)


def outcome(answer: Answer) -> str:
    """What an upcall came to, in a word."""
    if answer.error:
        return f"errno {answer.error}"
    if answer.updated is None:
        return "no answer"
    decoded = payload.unpack(answer.data)
    return f"failure {decoded.rpc_error}" if isinstance(decoded, payload.FailurePayload) else "context"


def has_line(upcalls: Upcalls) -> bool:
    return any("LGSS_ERROR" in event for event in upcalls.log())


@pytest.mark.skipif("LGSS_VM" in os.environ, reason="the moments are chosen for a real machine's speed")
@pytest.mark.timeout(240)
def test_each_of_60_killed_upcalls_is_answered_and_each_failure_has_a_line(site: Site, ticket: int) -> None:
    """But for what docs/errors.md names: a front that is killed before it has forked leaves no
    line, and its child that is killed before it has forked no answer."""
    chance = random.Random(random.getrandbits(64))  # a run with the same seed chooses the same
    found: Counter[str] = Counter()
    with site.upcalls() as upcalls, Requestor(ticket) as requestor:
        whole = requestor.ask(upcalls.name(), user_callout()).updated
    assert whole is not None
    for number in range(240):
        # A busy machine may have ended most of them before they were killed.
        if number >= 60 and sum(found.values()) > 20:
            break
        is_machine = bool(number % 2)
        with site.upcalls() as upcalls, Requestor(0 if is_machine else ticket) as requestor:
            callout = machine_callout() if is_machine else user_callout()
            requestor.start(upcalls.name(), callout, wait=pace(5))
            time.sleep(chance.random() * whole)
            processes = kill_one(site, chance)
            answer = requestor.result()
            result = outcome(answer)
            took = answer.blocked if answer.error else answer.updated
            if not processes:
                # It was over, or not there yet; and so long it takes just now.
                whole = took or whole
                continue
            if took is None:
                assert not is_machine and processes in (1, 2), (number, processes, answer)
            else:
                assert pace.met(took, ANSWERED), (number, processes, answer)
                if result != "context" and not within(2, lambda upcalls=upcalls: has_line(upcalls)):
                    assert processes == 1 and answer.error, (number, processes, answer)
                    result += ", without a line"
            found[result] += 1
            assert within(5, lambda: not upcall_processes(site))
    print(dict(found))
    assert sum(found.values()) > 20

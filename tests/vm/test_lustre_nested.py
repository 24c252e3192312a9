"""A context that Lustre asks for in a process of ours, which it has wait in init_channel.

A Lustre kernel does that for root when the target reconnects (docs/protocol.md 6). What
stands in the way there is an authority over a key that is instantiated by now, or a
limit on upcalls that count as at work while they wait for this very one.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from lustre import ALICE, ask, configure, established, parameter, secids
from moments import at_the_next_write, report_of
from server import LustreServer
from test_product import callout_to_server, soon
from testmod import Report, TokenRequest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]

# As many upcalls of one ordinary uid as may be at work at a time.
AT_WORK = 16


def ask_with_another_within(uid: int) -> tuple[Report, Report]:
    """The reports of an upcall, and of root's that the kernel makes within its write."""
    secid = next(secids)
    description = f"0@{secid:x}"
    callout = callout_to_server(0, flags="r", secid=secid, pid=1)
    with at_the_next_write(description, callout, timeout_ms=90000):
        report = ask(uid, flags="" if uid else "r")
        return report, report_of(description)


@pytest.mark.parametrize("uid", [0, ALICE])
def test_root_context_from_within_a_write(server: LustreServer, ticket: None, uid: int) -> None:
    report, nested = ask_with_another_within(uid)
    assert established(server, nested).initiator == "lustre_root/client.lgss.test@LGSS.TEST"
    established(server, report)
    assert len(server.requests) == 2


@pytest.mark.parametrize("uid", [0, ALICE])
def test_root_context_while_all_the_others_wait_for_the_server(
    ticket: None, patient_rule: None, uid: int
) -> None:
    """One more upcall of that uid holds the nested one, and all of them are at work."""
    configure("[upcall]\ntimeout = 200\nmachine_wait = 60\n[lustre]\nreply_timeout = 200\n")
    go = threading.Event()
    held: list[TokenRequest] = []

    def hold(request: TokenRequest) -> None:
        if request.obd_name == b"held":
            held.append(request)
            go.wait(200)

    with (
        parameter("answer_limit_ms", 250000),
        parameter("request_limit_ms", 250000),
        LustreServer(before=hold) as server,
        ThreadPoolExecutor(AT_WORK) as pool,
    ):
        kernel = {"timeout_ms": 250000}
        flags = "" if uid else "r"
        others = [
            pool.submit(ask, uid, flags=flags, kernel=kernel, obd_name="held") for _ in range(AT_WORK - 1)
        ]
        try:
            assert soon(lambda: len(held) == len(others), 150), len(held)
            report, nested = ask_with_another_within(uid)
        finally:
            go.set()
        assert established(server, nested).request.uid == 0
        for one in (report, *(other.result() for other in others)):
            assert established(server, one).request.uid == uid

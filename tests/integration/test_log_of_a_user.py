"""What a user can put into the log: text that is called theirs, and a bounded number of lines."""

from __future__ import annotations

import time
from datetime import datetime

from lgss_keyring.formats import pipe
from lgss_keyring.system.limits import LOG_WINDOW
from tests.support.requestor import Requestor
from tests.support.site import HOST, USER_UID, Site, machine_callout, user_callout

from .lgssd_process import Daemon, upcall
from .library import Peer, in_user
from .waiting import upcall_processes, within


def test_text_of_a_users_worker_is_called_theirs(site: Site, ticket: int) -> None:
    """The worker is under the control of its user; the machine's is root's own."""
    with site.upcalls() as upcalls, Requestor(ticket) as user, Requestor(0) as root:
        answer = user.ask(upcalls.name(), user_callout())
        steps = [e["message"] for e in upcalls.events(answer.key) if e.get("LGSS_STEP") == "negotiation"]
        assert steps
        assert all(text.startswith(f"key {answer.key}: worker of uid {USER_UID} says: ") for text in steps)
        answer = root.ask(upcalls.name(), machine_callout())
        steps = [e["message"] for e in upcalls.events(answer.key) if e.get("LGSS_STEP") == "negotiation"]
        assert steps and not any("says" in text for text in steps)


def test_a_storm_of_upcalls_writes_20_lines(site: Site) -> None:
    """Each has its own cause, so that the front does not know before that it will fail."""
    uid = USER_UID + 201
    with site.upcalls({"log": {"level": "info"}}) as upcalls, Requestor(uid) as user:
        for number in range(40):
            user.ask(upcalls.name(), f"nonsense {number}")
        assert within(5, lambda: not upcall_processes(site))
        events = upcalls.log()
        assert {event["LGSS_REQUESTOR"] for event in events} == {str(uid)}
        # A busy machine takes longer for all 40: what comes after those 10 s is counted anew.
        begun = datetime.fromisoformat(events[0]["time"])
        counted = [e for e in events if (datetime.fromisoformat(e["time"]) - begun).seconds < LOG_WINDOW]
        assert len(counted) == 20 and "are counted, not shown" in counted[-1]["message"]


def test_failures_of_one_user_are_counted_over_all_processes(site: Site, peer: Peer) -> None:
    """Each request is answered by a process of its own; all of them share one count."""
    uid = USER_UID + 202
    site.realm.ccache_of(uid).unlink(missing_ok=True)
    daemon = Daemon(site, peer.port, level="info")

    def failures() -> list[str]:
        return [line for line in daemon.log_file.read_text().splitlines() if "no-ticket" in line]

    def ask(requests: int) -> int:
        with daemon.connect() as connection:
            for seq in range(requests):
                connection.send(upcall(uid, seq=seq).pack())
            return sum(len(connection.recv(pipe.DOWNCALL_LIMIT)) > 0 for _ in range(requests))

    try:
        assert in_user(uid, lambda: ask(60)) == 60
        # One whose slot is locked by another process is shown if the limit is not reached yet.
        assert 20 <= len(failures()) <= 24
        assert sum("are counted, not shown" in line for line in failures()) == 1
        assert within(15, lambda: in_user(uid, lambda: ask(1)) == 1 and "more lines of" in last_lines(daemon))
    finally:
        daemon.close()


def last_lines(daemon: Daemon) -> str:
    """The end of its log; waits for a moment, so that no request is made in each millisecond."""
    time.sleep(1)
    return "\n".join(line for line in daemon.log_file.read_text().splitlines() if "LGSS_HIDDEN" in line)


def test_the_initiator_of_a_user_is_a_claim(site: Site, peer: Peer, ticket: int) -> None:
    """A plug-in of libkrb5 can make a worker say any name; the machine's worker is root's own."""
    daemon = Daemon(site, peer.port)
    try:
        daemon.ask(upcall(ticket).pack())
        daemon.ask(upcall(0).pack())
        text = daemon.log_file.read_text()
        assert f"established; the worker of uid {ticket} claims to be alice@{site.realm.name}" in text
        assert f"established as lustre_root/{HOST}@" in text and "established as alice" not in text
    finally:
        daemon.close()

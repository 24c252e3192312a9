"""A requestor's quota of bytes that is used up, and a machine that forbids kill(2)."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

from lgss_keyring.formats import payload
from tests.support import load, table
from tests.support.requestor import Answer, Requestor
from tests.support.site import USER_UID, Site, Upcalls, user_callout

from .answers import established
from .waiting import pace, upcall_processes, within

FIRST_UID = USER_UID + 400
MOST_BYTES = Path("/proc/sys/kernel/keys/maxbytes")


def used_bytes(uid: int) -> int:
    """How many bytes of its quota ``uid`` uses, by /proc/key-users."""
    for line in Path("/proc/key-users").read_text().splitlines():
        owner, _, counts = line.partition(":")
        if int(owner) == uid:
            return int(counts.split()[3].split("/")[0])
    return 0


def fill(requestor: Requestor, uid: int, left: int, folder: Path) -> None:
    """Use the quota up to so many bytes that are left."""
    # A key costs its description and a NUL, and 4 bytes for its link.
    size = int(MOST_BYTES.read_text()) - used_bytes(uid) - left - len("fill") - 1 - 4
    content = folder / f"fill-{uid}"
    content.write_bytes(b"x" * size)
    requestor.run(["sh", "-c", f"keyctl padd user fill @s < {content}"])
    assert abs(int(MOST_BYTES.read_text()) - used_bytes(uid) - left) < 40


def outcome(answer: Answer) -> str:
    if answer.error:
        return os.strerror(answer.error)
    if answer.updated is None:
        return f"gone: {os.strerror(answer.read_error)}" if answer.read_error else "no answer"
    decoded = payload.unpack(answer.data)
    return f"failure {decoded.rpc_error}" if isinstance(decoded, payload.FailurePayload) else "context"


def test_a_full_quota_of_bytes_is_answered_at_once(site: Site, upcalls: Upcalls) -> None:
    """With the errno, or a key that is gone; and never by the key's timeout."""
    found: Counter[str] = Counter()
    for number, left in enumerate(range(100, 460, 15)):
        uid = FIRST_UID + number
        site.kinit(uid)
        with load.steady_quota(), Requestor(uid) as user:
            fill(user, uid, left, site.directory)
            answer = user.ask(upcalls.name(), user_callout(uid), wait=pace(3))
        result = outcome(answer)
        found[result] += 1
        assert result in (
            "context",
            f"failure {errno.EDQUOT}",
            os.strerror(errno.EDQUOT),
            f"gone: {os.strerror(errno.ENOKEY)}",
        ), (left, answer)
        if result.startswith("failure"):
            event = upcalls.events(answer.key)[-1]
            table.judge("resources", event["LGSS_ERRNO"], event["message"])
            assert (event["LGSS_ERROR"], event["LGSS_ERRNO"]) == ("resources", "EDQUOT")
        site.realm.ccache_of(uid).unlink()
    print(dict(found))
    assert found[f"failure {errno.EDQUOT}"] and found["context"]


def test_where_kill_is_forbidden_the_context_is_established(site: Site, ticket: int) -> None:
    """As a security module may: without CAP_KILL root cannot signal another user's process."""
    wrapper = site.stage.directory / "no-kill"
    drop = "setpriv --bounding-set=-kill --inh-caps=-kill"
    wrapper.write_text(f'#!/bin/sh\nexec {drop} {site.stage.program} "$@"\n')
    wrapper.chmod(0o755)
    with site.upcalls(program=wrapper) as upcalls, Requestor(ticket) as user:
        answer = user.ask(upcalls.name(), user_callout())
        established(answer)
        event = upcalls.events(answer.key)[-1]
        assert event["LGSS_UID"] == str(ticket) and "handed to the kernel" in event["message"]
        assert within(2, lambda: not upcall_processes(site))

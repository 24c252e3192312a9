"""The judge of failures that came through the real kernel."""

from __future__ import annotations

import errno
import os

from lgss_keyring.formats import payload
from tests.support import table
from tests.support.requestor import Answer
from tests.support.site import Upcalls

from .waiting import pace, within

BLOCKED = 0.1
ANSWERED = 1.0

callers: list[tuple[float, bool]] = []
"""How long each caller was blocked, and whether that is below BLOCKED for the machine as it was
then; judged at the end of test_faults_of_upcalls."""


def note_caller(answer: Answer) -> None:
    """Let this one be judged with the others."""
    callers.append((answer.blocked, pace.met(answer.blocked, BLOCKED)))


def failed(
    answer: Answer, upcalls: Upcalls, number: int, kind: str, words: str = "", limit: float = ANSWERED
) -> str:
    """Check one failure from all its sides; the log's message.

    A request with flags is judged before its key is instantiated: its caller has the errno
    itself, from request_key(2).
    """
    # A request for the machine that takes long by intention blocks its caller for that time.
    if not answer.error or limit == ANSWERED:
        note_caller(answer)
    if answer.error:
        assert answer.error == number, os.strerror(answer.error)
        assert pace.met(answer.blocked, limit)
        message = _line_of_a_rejection(upcalls, kind, errno.errorcode[number], words)
        table.judge(kind, errno.errorcode[number], message)
        return message
    decoded = payload.unpack(answer.data)
    assert isinstance(decoded, payload.FailurePayload), decoded
    event = upcalls.events(answer.key)[-1]
    assert (event.get("LGSS_ERROR"), event.get("LGSS_ERRNO")) == (kind, errno.errorcode[number]), event
    assert decoded.rpc_error == number, os.strerror(decoded.rpc_error)
    assert event["level"] == "warning" and event["LGSS_REQUESTOR"].isdecimal()
    assert str(answer.key) in event["message"] and words in event["message"], event["message"]
    table.judge(kind, event["LGSS_ERRNO"], event["message"])
    assert answer.updated is not None and pace.met(answer.updated, limit)
    return event["message"]


_judged: set[tuple[str, str]] = set()


def _line_of_a_rejection(upcalls: Upcalls, kind: str, number: str, words: str) -> str:
    """The log's message about a key that was rejected.  Its caller does not learn which key
    that was, so it is the one line of this kind that no other failure has been judged by."""

    def lines() -> list[dict[str, str]]:
        found = [e for e in upcalls.log("LGSS_ERROR=") if (e["time"], e["message"]) not in _judged]
        return [e for e in found if (e.get("LGSS_ERROR"), e.get("LGSS_ERRNO")) == (kind, number)]

    assert within(1, lambda: lines()), upcalls.log("LGSS_ERROR=")
    event = lines()[-1]
    assert event["LGSS_REQUESTOR"].isdecimal()
    _judged.add((event["time"], event["message"]))
    assert words in event["message"], event["message"]
    return event["message"]

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

callers: list[float] = []
"""How long each caller was blocked; judged at the end of test_faults_of_upcalls."""


def failed(
    answer: Answer, upcalls: Upcalls, number: int, kind: str, words: str = "", limit: float = ANSWERED
) -> str:
    """Check one failure from all its sides; the log's message.

    A request with flags is judged before its key is instantiated: its caller has the errno
    itself, from request_key(2).
    """
    callers.append(answer.blocked)
    if answer.error:
        assert answer.error == number, os.strerror(answer.error)
        assert answer.blocked < pace(limit)
        assert within(1, lambda: upcalls.log("LGSS_ERROR="))
        event = upcalls.log("LGSS_ERROR=")[-1]
        assert (event.get("LGSS_ERROR"), event.get("LGSS_ERRNO")) == (kind, errno.errorcode[number]), event
        assert words in event["message"], event["message"]
        table.judge(kind, event["LGSS_ERRNO"], event["message"])
        return event["message"]
    decoded = payload.unpack(answer.data)
    assert isinstance(decoded, payload.FailurePayload), decoded
    event = upcalls.events(answer.key)[-1]
    assert (event.get("LGSS_ERROR"), event.get("LGSS_ERRNO")) == (kind, errno.errorcode[number]), event
    assert decoded.rpc_error == number, os.strerror(decoded.rpc_error)
    assert event["level"] == "warning"
    assert str(answer.key) in event["message"] and words in event["message"], event["message"]
    table.judge(kind, event["LGSS_ERRNO"], event["message"])
    assert answer.updated is not None and answer.updated < pace(limit)
    return event["message"]

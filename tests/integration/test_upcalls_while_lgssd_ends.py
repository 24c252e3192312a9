"""Upcalls, through each front, while lgssd is stopped, killed, reloaded and updated: all have a context."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable

from lgss_keyring.formats import payload
from tests.support.installation import upcalls_during

from .fronts import Front
from .fronts import front as front
from .managed_lgssd import Manager
from .waiting import within


def test_every_upcall_has_its_context(front: Front, ticket: int) -> None:
    """lgssd's workers negotiate nothing: their contexts have their pids for handles.  An upcall that
    has to do the work itself has a real one."""
    with Manager() as manager, front.upcalls(manager.path) as upcalls:
        manager.installation.config = upcalls.config_file

        def send(number: signal.Signals) -> None:
            os.kill(manager.pid(), number)

        def update() -> None:
            starts = manager.starts
            manager.installation.switch()
            assert within(20, lambda: manager.starts > starts)

        works: list[Callable[[], object]] = [
            lambda: send(signal.SIGTERM),
            lambda: send(signal.SIGKILL),
            lambda: send(signal.SIGHUP),
            update,
            lambda: send(signal.SIGKILL),
        ]
        answers, errors = upcalls_during(upcalls, 150, 25, works)
        assert not errors, errors
        assert front.gone()
    assert manager.statuses[:2] == [0, -signal.SIGKILL]
    by_lgssd = 0
    for answer in answers:
        assert not answer.error and not answer.read_error, answer
        context = payload.unpack(answer.data)
        assert isinstance(context, payload.ContextPayload), answer
        by_lgssd += len(context.handle) == struct.calcsize("=Q") and context.context == b"context"
    assert by_lgssd > 75

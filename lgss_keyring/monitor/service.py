"""Serving one request by a worker of its own, for the monitor of an upcall.  It knows no key."""

from __future__ import annotations

import os

from lgss_keyring.monitor import init_channel
from lgss_keyring.monitor.worker_process import WorkerProcess
from lgss_keyring.system import keyrings
from lgss_keyring.worker import namespaces, work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Answer, Established, Failed
    from lgss_keyring.monitor.deadline import Deadline
    from lgss_keyring.system.log import Log
    from lgss_keyring.worker.monitor_connection import MonitorConnection


def serve(
    request: UpcallRequest,
    settings: Config,
    forked: int,
    deadline: Deadline,
    log: Log,
    credential_ready: Callable[[], None] | None = None,
    credential_deadline: Deadline | None = None,
) -> Answer:
    """The answer to ``request``, by a worker of its own.

    The process in callout field 10 must have started at ``forked`` (clock ticks since boot) or
    before.  ``credential_ready`` is called when the initiator's credential is there, which must
    be before ``credential_deadline``.  Raises LgssError for an error before there is a worker.
    """
    # The requestor's keyrings are for the requestor's own contexts: a user that root asks for must
    # not get root's TGT, nor the machine a user's. The front links none for such requests, and
    # this holds even if it had.
    if request.is_machine or request.requestor_uid != request.uid:
        keyrings.unlink_requestor(request.keyrings)
    elif not request.pid:
        # The requestor may be a process of root's that works for this user (setfsuid(2)). The
        # request does not show that, so every keyring that is not this user's is taken for root's.
        others = [each for each in request.keyrings if each and not keyrings.owned(each, request.uid)]
        keyrings.unlink_requestor(tuple(others))

    monitor = os.getpid()
    writer = init_channel.InitChannelWriter(request, settings) if request.key_type == "lgssc" else None

    def serve_as_user(connection: MonitorConnection) -> Established | Failed:
        return work.run(request, settings, monitor, forked, connection)

    def report(level: str, text: str) -> None:
        log.event(level, f"key {request.key}: {request.speaker}{text}", step="negotiation")

    # The code of a container runs in there (its name service, its plug-ins of libkrb5), so
    # the worker gets a pid namespace of its own and sees no process out here.
    hidden = not request.is_machine and namespaces.foreign(request.pid)
    worker = WorkerProcess(serve_as_user, writer, hidden, request.speaker)
    return worker.wait(deadline, report, credential_ready, credential_deadline)

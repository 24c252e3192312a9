"""Turning a record into a request, and serving it."""

from __future__ import annotations

import time

from lgss_keyring.formats import callout
from lgss_keyring.formats.callout import UpcallRequest
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.monitor import service
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.system import keyrings
from lgss_keyring.system.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.daemon.peers import Peer
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.pipe import Upcall


def request_of(upcall: Upcall, peer: Peer) -> UpcallRequest:
    """The request in ``upcall`` as ``peer`` may make it; raises RefusedError.

    A record names no mechanism and no flags: krb5, and ``r`` for uid 0 (docs/protocol.md 9).  The
    acceptor is reached as for a key of type ``user``.
    """
    request = UpcallRequest(
        secid=0,
        mechanism="krb5",
        uid=upcall.uid,
        gid=upcall.gid,
        flags="" if upcall.uid else "r",
        service_type="-",
        lustre_service=upcall.service,
        target_nid=upcall.nid,
        obd_name=upcall.obd_name,
        self_nid=0,
        pid=0,
        client_uuid=None,
        key=upcall.seq or 1,
        key_type="user",
        description="pipe",
        requestor_uid=peer.uid,
        requestor_gid=peer.gid,
        thread_keyring=0,
        process_keyring=0,
        session_keyring=0,
        realm=None,
    )
    callout.authorize(request)
    return request


def handle(upcall: Upcall, peer: Peer, settings: Config) -> bytes:
    """The key payload (docs/protocol.md 7) that answers ``upcall``; an error becomes a failure payload."""
    started = time.monotonic()
    log = Log(settings.log.level, settings.log.file, started=started, folder=settings.krb5.ccache_directory)
    log.bind(uid=upcall.uid, requestor=peer.uid, target=f"{upcall.obd_name}@0x{upcall.nid:x}", mech="krb5")
    limit = settings.upcall.timeout
    try:
        # A new session keyring: the worker of an earlier request could have linked a keyring into
        # the one that it shares with lgssd, and libkrb5 would look into that.
        keyrings.leave_session()
        request = request_of(upcall, peer)
        deadline = Deadline(started + limit, limit, "[upcall] timeout")
        answer = service.serve(request, settings, 0, deadline, log)
    except LgssError as error:
        answer = Answer.of_failure(Failed.by(error))
    failure = answer.failure and answer.failure.located(settings)
    if failure is None:
        # A user's worker is under that user's control, so the name is what it says.
        established = (
            f"established; the worker of uid {upcall.uid} claims to be {answer.initiator}"
            if upcall.uid
            else f"established as {answer.initiator}"
        )
        log.event("info", established, step="answered", initiator=answer.initiator)
    else:
        log.event(
            "warning",
            f"uid {upcall.uid}: {failure.reason}{'; ' if failure.hint else ''}{failure.hint}",
            always=True,
            error=failure.kind,
            errno=failure.errno,
        )
    return answer.payload

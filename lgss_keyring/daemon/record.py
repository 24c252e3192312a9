"""One record of the older pipe upcall (docs/protocol.md 9) in lgssd, from its peer to the answer."""

from __future__ import annotations

import time

from lgss_keyring.daemon.negotiation import Negotiation
from lgss_keyring.formats import callout
from lgss_keyring.formats.errors import RequestError
from lgss_keyring.formats.wiping import wipe
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.system.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lgss_keyring.daemon.negotiation import Dispatcher
    from lgss_keyring.daemon.peers import Peer
    from lgss_keyring.daemon.settings import Settings
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Answer
    from lgss_keyring.formats.pipe import Upcall

DESCRIPTION = f"{callout.USER_PREFIX}pipe"


def arguments_of(upcall: Upcall, peer: Peer) -> list[str]:
    """The ten arguments of docs/protocol.md 1 for ``upcall``, as if ``peer`` had asked for a key of type
    ``user``, whose acceptor is reached by TCP.

    A record names no mechanism and no flags: krb5, and ``r`` for uid 0 (docs/protocol.md 9).
    """
    text = callout.format_callout(
        uid=upcall.uid,
        gid=upcall.gid,
        flags="" if upcall.uid else "r",
        lustre_service=upcall.service,
        target_nid=upcall.nid,
        obd_name=upcall.obd_name,
    )
    serial = upcall.seq & callout.INT_MAX or 1
    return ["create", str(serial), "user", DESCRIPTION, text, str(peer.uid), str(peer.gid), "0", "0", "0"]


def request_of(upcall: Upcall, peer: Peer) -> UpcallRequest:
    """The request in ``upcall`` as ``peer`` may make it; raises RequestError and RefusedError."""
    request = callout.parse_request(arguments_of(upcall, peer))
    if request.obd_name != upcall.obd_name:
        # A colon in it would make its end the fields behind it.
        raise RequestError(f"the obd name {upcall.obd_name!a} is none")
    callout.authorize(request)
    return request


class RecordUpcall(Negotiation):
    """See :class:`lgss_keyring.daemon.negotiation.Negotiation`.  ``peer`` has sent ``upcall``, which is
    ``request`` by :func:`request_of`."""

    def __init__(
        self,
        peer: Peer,
        upcall: Upcall,
        request: UpcallRequest,
        settings: Config,
        dispatcher: Dispatcher,
        ended: Callable[[RecordUpcall], None],
    ) -> None:
        super().__init__(dispatcher, peer.uid, request.is_machine, lambda: ended(self))
        if peer.uid == 0 and not request.is_machine:
            self.line = (0, False, str(request.uid))
        self.peer = peer
        self.request = request
        self._upcall = upcall
        self._settings = settings
        started = time.monotonic()
        limit = float(settings.upcall.timeout)
        self.deadline = Deadline(started + limit, limit, "[upcall] timeout")
        log = settings.log
        self.log = Log(log.level, log.file, started=started, folder=settings.krb5.ccache_directory)
        self.log.bind(uid=upcall.uid, requestor=peer.uid, target=request.target, mech=request.mechanism)
        peer.under_way.add(self)

    def begin(self, settings: Settings) -> bool:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        return True

    def arguments(self) -> tuple[str | None, Sequence[str]]:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        return None, arguments_of(self._upcall, self.peer)

    @property
    def subject(self) -> str:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        return f"request {self._upcall.seq}"

    def look_at_clock(self, now: float) -> None:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        if self.answer is None and now > self.deadline.at:
            self.fail_late(self.deadline)

    def finish(self, answer: Answer) -> None:
        """Write the line of the log, and send the answer to the peer."""
        self.answer = answer
        failure = answer.failure and answer.failure.located(self._settings)
        if failure is None:
            # A user's worker is under that user's control, so the name is what it says.
            established = (
                f"established; the worker of uid {self.request.uid} claims to be {answer.initiator}"
                if self.request.uid
                else f"established as {answer.initiator}"
            )
            self.log.event("info", established, step="answered", initiator=answer.initiator)
        else:
            self.log.event(
                "warning",
                f"uid {self.request.uid}: {failure.reason}{'; ' if failure.hint else ''}{failure.hint}",
                always=True,
                error=failure.kind,
                errno=failure.errno,
            )
        self.peer.answer(self._upcall.seq, answer.payload)
        wipe(answer.payload)
        self.close()

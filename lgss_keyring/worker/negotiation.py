"""``negotiate(request, config, channel) -> Established | Failed``: one context, without any key.

The request says who asks, for which user and with which mechanism; the channel takes the
tokens to the acceptor; the mechanism makes them.  This runs in a worker
(:mod:`lgss_keyring.monitor.worker_process`) that may already be an ordinary user.
"""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import (
    ACCEPTOR_DEFECT_HINT,
    ChannelError,
    Kind,
    MechanismError,
)
from lgss_keyring.formats.nid import Nid
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.worker import mech, names
from lgss_keyring.worker.limits import LEGS
from lgss_keyring.worker.mech.interface import KeptTicketRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report
    from lgss_keyring.worker.channel.interface import Channel, Connection, Reply

GSS_S_COMPLETE = 0
GSS_S_CONTINUE_NEEDED = 1


def preload(request: UpcallRequest) -> None:
    """Import now what :func:`negotiate` will need for ``request``, so that it touches
    no file of ours when this process has become the user; raises MechanismError."""
    names.preload(Nid.from_int(request.target_nid))
    mech.load(request.mechanism).prepare(request)


def _silent(level: str, text: str) -> None:
    pass


def negotiate(
    request: UpcallRequest,
    config: Config,
    channel: Channel,
    report: Report = _silent,
    host: str = "",
    credential_ready: Callable[[], None] = lambda: None,
) -> Established | Failed:
    """Negotiate the context that ``request`` asks for, with the server named ``host``; empty: its
    name is looked up here.

    The same as :func:`steps`, and waits in ``channel.exchange`` for each reply.
    """
    conversation = steps(request, config, channel, report, host, credential_ready)
    try:
        exchange = next(conversation)
        while True:
            try:
                reply = channel.exchange(*exchange)
            except Exception as error:
                exchange = conversation.throw(error)
            else:
                exchange = conversation.send(reply)
    except StopIteration as end:
        outcome: Established | Failed = end.value
        return outcome


def steps(
    request: UpcallRequest,
    config: Config,
    channel: Connection,
    report: Report = _silent,
    host: str = "",
    credential_ready: Callable[[], None] = lambda: None,
) -> Generator[tuple[bytes, bytes], Reply, Established | Failed]:
    """The negotiation of :func:`negotiate` as a generator, which leaves the exchanges to its caller.

    It yields each token and the handle that go to the acceptor, and is sent the reply, or the
    exchange's error is thrown into it.  It returns the outcome.  Of ``channel`` it takes only whether a
    second attempt is possible, and it closes it after each attempt.

    ``credential_ready()`` is called when the initiator's credential is there, before
    anything is sent to the acceptor; again for a second attempt.  ``report(level, text)``
    gets each step, with levels as in :mod:`lgss_keyring.system.log`.  Raises nothing: every
    error is a :class:`Failed`.  Blocks for as long as KDC and name service do; the caller
    bounds that.
    """
    rejected: set[bytes] = set()
    try:
        host = host or names.target_host_name(request, config)
        service = names.service_name(request.lustre_service, host)
        report("debug", f"the acceptor is {service}")

        def attempt() -> Generator[tuple[bytes, bytes], Reply, Established]:
            return _attempt(request, config, channel, service, report, rejected, credential_ready)

        try:
            return (yield from attempt())
        except KeptTicketRefusedError as error:
            if channel.is_single_use:
                raise
            report("info", f"{error.reason}; trying once more with a new ticket")
            return (yield from attempt())
        except ChannelError as error:
            # Try once more, from the start and with a new authenticator: the old one
            # may be in the acceptor's replay cache.
            again = error.errno == errno.ETIMEDOUT or error.kind == Kind.START_AGAIN
            if channel.is_single_use or not again:
                raise
            report("warning", f"{error.reason}; trying once more")
            return (yield from attempt())
    except Exception as error:
        return Failed.by(error)


def _attempt(
    request: UpcallRequest,
    config: Config,
    channel: Connection,
    service: str,
    report: Report,
    rejected: set[bytes],
    credential_ready: Callable[[], None],
) -> Generator[tuple[bytes, bytes], Reply, Established]:
    """One attempt; ``rejected`` are the tickets that the acceptor has refused in an earlier one."""
    initiator = mech.load(request.mechanism).initiator(request, config, service, report, rejected)
    try:
        credential_ready()
        token = initiator.step(None)
        handle = b""
        for leg in range(1, LEGS + 1):
            if token is None:
                raise _defect("the acceptor wants to go on where the mechanism is done")
            reply = yield token, handle
            report("debug", f"leg {leg}: {len(token)} bytes sent, {len(reply.token)} received")
            if reply.major not in (GSS_S_COMPLETE, GSS_S_CONTINUE_NEEDED):
                raise initiator.refused(reply.major, reply.minor, reply.token)
            handle = reply.handle
            token = None
            if not initiator.complete:
                token = initiator.step(reply.token)
            elif reply.token:
                raise _defect("the acceptor sent a token after the last one")
            if reply.major == GSS_S_COMPLETE:
                break
        else:
            raise _defect(f"the acceptor still wants to go on after {LEGS} tokens")
        if not initiator.complete or token is not None:
            raise _defect("the acceptor is done before the mechanism is")
        if reply.proof is not None:
            # Before the export, after which the context can no longer verify.
            initiator.verify_mic(*reply.proof)
        if not handle or not reply.seq_window:
            raise ChannelError(
                "the acceptor gave no context handle or no sequence window",
                errno=errno.EPROTO,
                hint=ACCEPTOR_DEFECT_HINT,
            )
        context, endtime = initiator.export()
        return Established(reply.seq_window, handle, context, endtime, initiator.name)
    finally:
        channel.close()
        initiator.close()


def _defect(reason: str) -> MechanismError:
    return MechanismError(reason, hint=ACCEPTOR_DEFECT_HINT)

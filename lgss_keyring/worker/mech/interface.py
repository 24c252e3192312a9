"""What a module of a mechanism offers, and what it raises for another attempt."""

from __future__ import annotations

from lgss_keyring.formats.errors import MechanismError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report

    class Initiator(Protocol):
        """One side of one context under negotiation (RFC 2743, 2.2.1)."""

        name: str
        """The initiator's name, once known, for people."""
        complete: bool
        """Whether the mechanism needs no further token from the acceptor."""

        def step(self, token: bytes | None) -> bytes | None:
            """Take the acceptor's token (None at first), give the next or None."""

        def verify_mic(self, message: bytes, mic: bytes) -> None:
            """Check the acceptor's MIC with the complete context."""

        def refused(self, major: int, minor: int, token: bytes) -> MechanismError:
            """The error for a failure status from the acceptor, with what its error token says;
            KeptTicketRefusedError if another attempt from the start can help."""

        def export(self) -> tuple[bytes, int]:
            """The kernel's ctx (docs/protocol.md 7) and the endtime in seconds since the
            epoch; the context is used up by it."""

        def close(self) -> None:
            """Give up what it holds: a process that serves many requests keeps nothing of one."""

    class Mechanism(Protocol):
        """What a module of this package offers."""

        def prepare(self, request: UpcallRequest) -> None:
            """Import what only this request needs, while files can still be read."""

        def initiator(
            self,
            request: UpcallRequest,
            config: Config,
            service: str,
            report: Report,
            rejected: set[bytes],
        ) -> Initiator:
            """Begin a context with ``service`` (a host-based service name, as text).  ``rejected``: the
            tickets that the acceptor has refused in an earlier attempt for this request, which are
            not used again; :meth:`Initiator.refused` adds to it.

            Raises CredentialError, MechanismError."""


class KeptTicketRefusedError(MechanismError):
    """The acceptor has refused a ticket that an earlier upcall had kept: another attempt gets a
    new one."""

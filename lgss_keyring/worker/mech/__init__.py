"""The GSS mechanisms: one module for each, and one entry in :data:`MECHANISMS`.

A module of this package offers what :class:`Mechanism` lists.
"""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import GSS_S_BAD_MECH, Kind, MechanismError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
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
            """The error for a failure status from the acceptor, its error token read."""

        def export(self) -> tuple[bytes, int]:
            """The kernel's ctx (docs/protocol.md 7) and the endtime in seconds since the
            epoch; the context is used up by it."""

    class Mechanism(Protocol):
        """What a module of this package offers."""

        def prepare(self, request: UpcallRequest) -> None:
            """Import what only this request needs, while files can still be read."""

        def initiator(
            self, request: UpcallRequest, config: Config, service: str, report: Report
        ) -> Initiator:
            """Begin a context with ``service`` (a host-based service name, as text).

            Raises CredentialError, MechanismError."""


def _krb5() -> Mechanism:
    from lgss_keyring.worker.mech import krb5

    return krb5


def _gssnull() -> Mechanism:
    from lgss_keyring.worker.mech import gssnull

    return gssnull


# Functions, so that a module is imported when a request names it and mypy still compares each
# with the protocol.
MECHANISMS: dict[str, Callable[[], Mechanism]] = {"krb5": _krb5, "gssnull": _gssnull}


def load(name: str) -> Mechanism:
    """The mechanism of that name (docs/protocol.md 2, field 1), imported when first needed.

    Raises MechanismError for one that this version does not have.
    """
    if name not in MECHANISMS:
        raise MechanismError(
            f"mechanism {name} is not supported",
            errno=errno.EPROTONOSUPPORT,
            major=GSS_S_BAD_MECH,
            kind=Kind.MECHANISM_UNSUPPORTED,
            hint=f"use a flavor of: {', '.join(MECHANISMS)}",
        )
    return MECHANISMS[name]()

"""The mechanisms: one module each, one interface, one line here.

A module offers what :class:`Mechanism` lists.
"""

from __future__ import annotations

import errno
import importlib

from lgss_keyring.formats.errors import GSS_S_BAD_MECH, Kind, MechanismError

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


MECHANISMS = {"krb5": "krb5", "gssnull": "gssnull"}


def load(name: str) -> Mechanism:
    """The mechanism of that name (docs/protocol.md 2, field 1), loaded when first needed.

    Raises :class:`MechanismError` for one that this version does not have.
    """
    if name not in MECHANISMS:
        raise MechanismError(
            f"mechanism {name} is not supported",
            errno=errno.EPROTONOSUPPORT,
            major=GSS_S_BAD_MECH,
            kind=Kind.MECHANISM_UNSUPPORTED,
            hint=f"use a flavor of: {', '.join(MECHANISMS)}",
        )
    module: Mechanism = importlib.import_module(f"{__name__}.{MECHANISMS[name]}")
    return module

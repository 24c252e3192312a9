"""Lustre's null mechanism (docs/protocol.md 7): a token there and back, and no protection.

For tests of a Lustre site that does not depend on Kerberos yet.  It also shows that the
code above the mechanisms need not know which one it uses.
"""

from __future__ import annotations

import os

from lgss_keyring.formats.errors import Kind, MechanismError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report

CONTEXT_BYTES = 8
FLAG_BITS = {"r": 1, "m": 2, "o": 4}
ENDTIME = 2**32 - 1
"""In seconds since the epoch: the last that a u32 has, as such a context has no end."""


def prepare(request: UpcallRequest) -> None:
    """See :class:`lgss_keyring.worker.mech.interface.Mechanism`."""


def initiator(
    request: UpcallRequest, config: Config, service: str, report: Report, rejected: set[bytes]
) -> NullInitiator:
    """Begin a context; see :class:`lgss_keyring.worker.mech.interface.Mechanism`."""
    return NullInitiator(request)


class NullInitiator:
    """See :class:`lgss_keyring.worker.mech.interface.Initiator`."""

    def __init__(self, request: UpcallRequest) -> None:
        self.name = f"gssnull of uid {request.uid}"
        self.complete = False
        self._flags = sum(FLAG_BITS[flag] for flag in request.flags)
        self._answer = b""

    def step(self, token: bytes | None) -> bytes | None:
        """8 bytes big-endian first: random 32 bits << 32 | root flags; then the
        acceptor's token becomes the context.  Raises MechanismError unless it has 8 bytes, as
        the kernel wants the context."""
        if token is None:
            return os.urandom(4) + self._flags.to_bytes(4, "big")
        if len(token) != CONTEXT_BYTES:
            raise MechanismError(f"the acceptor's gssnull token has {len(token)} bytes, not {CONTEXT_BYTES}")
        self._answer = token
        self.complete = True
        return None

    def verify_mic(self, message: bytes, mic: bytes) -> None:
        """Raises MechanismError: there is no key to make or check a MIC with."""
        raise MechanismError(
            "mechanism gssnull has no MIC, which RPCSEC_GSS needs",
            kind=Kind.MECHANISM_UNSUPPORTED,
            hint="use gssnull with keys of type lgssc only",
        )

    def refused(self, major: int, minor: int, token: bytes) -> MechanismError:
        """The acceptor's refusal."""
        return MechanismError(
            f"the acceptor refused gssnull: GSS major status 0x{major:08x}, minor {minor}",
            major=major,
            kind=Kind.REFUSED_BY_ACCEPTOR,
            hint="the server must allow the flavor gssnull",
        )

    def export(self) -> tuple[bytes, int]:
        """The token that came back, and no end."""
        return self._answer, ENDTIME

    def close(self) -> None:
        """Nothing to give up."""

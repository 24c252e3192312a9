"""The GSS mechanisms: one module for each, and one entry in :data:`MECHANISMS`.

Each module offers what :class:`~lgss_keyring.worker.mech.interface.Mechanism` lists.
"""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import GSS_S_BAD_MECH, Kind, MechanismError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.worker.mech.interface import Mechanism


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

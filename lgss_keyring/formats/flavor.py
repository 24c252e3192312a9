"""Flavors: mechanism and protection under the one name that Lustre writes."""

from __future__ import annotations

import errno

from lgss_keyring.formats.crypto import tokens
from lgss_keyring.formats.errors import GSS_S_BAD_QOP, Kind, LgssError
from lgss_keyring.formats.record import Record


class FlavorError(LgssError):
    """No such flavor, or it cannot do what is asked of it."""

    default_errno = errno.EINVAL
    default_major = GSS_S_BAD_QOP
    default_kind = Kind.FLAVOR


class Flavor(Record):
    """``name`` as Lustre writes it; ``mechanism`` and ``service_type`` as in callout info
    (docs/protocol.md 2, fields 1 and 5)."""

    name: str
    mechanism: str
    service_type: str

    def __str__(self) -> str:
        return self.name

    def covered(self, pieces: int) -> int:
        """How many of a message's ``pieces``, from the first on, the MIC covers; 0: there is no MIC."""
        if self.name == "krb5a":
            return min(1, pieces)
        return pieces if self.name in ("krb5i", "krb5p") else 0

    def token_size(self, enctype: int) -> int:
        """The length of the MIC token, 0 where there is none."""
        return tokens.mic_size(enctype) if self.covered(1) and not self.seals else 0

    @property
    def seals(self) -> bool:
        """Whether messages are encrypted."""
        return self.service_type == "p"


FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor("krb5n", "krb5", "n"),
        Flavor("krb5a", "krb5", "a"),
        Flavor("krb5i", "krb5", "i"),
        Flavor("krb5p", "krb5", "p"),
        Flavor("gssnull", "gssnull", "n"),
    )
}


def parse(name: str) -> Flavor:
    """The flavor of that name; raises FlavorError."""
    try:
        return FLAVORS[name]
    except KeyError:
        raise FlavorError(f"flavor {name[:40]!a} is none of {', '.join(FLAVORS)}") from None

"""The check of section [hosts] of the configuration.

Without it, a misspelt NID or host name would never be found and never be noticed.
"""

from __future__ import annotations

from lgss_keyring.formats.errors import ConfigError, ResolutionError
from lgss_keyring.formats.nid import IPV6_CHARACTERS, IPV6_TEXT_LIMIT, Nid, ipv6_nid_of_mgc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
HOST_NAME_LIMIT = 253
"""Characters of a host name (RFC 1035, 2.3.4, without the length bytes)."""
LABEL_LIMIT = 63
"""Characters between two dots of a host name."""
MGC = "MGC"
"""The beginning of a management client's obd name; the NID of its server follows."""


def checked(table: Mapping[str, Any], path: str) -> dict[str, str]:
    """The host names in ``table`` by NID, address, target or node, each NID as :class:`Nid` writes it.

    ``table`` is the section of the file ``path``.  Raises ConfigError.
    """
    found: dict[str, str] = {}
    for key, host in table.items():
        if not isinstance(host, str) or not is_host_name(host):
            raise ConfigError(f"{path}: [hosts] {key!a}: a host name in quotes is needed")
        standard = standard_key(key)
        if not standard:
            raise ConfigError(
                f"{path}: [hosts] {key!a} is no NID, address, target or node name",
                hint='a NID is ADDRESS@NETWORK, such as "192.168.1.5@tcp"',
            )
        if found.get(standard, host) != host:
            raise ConfigError(f"{path}: [hosts] has two names for {standard}")
        found[standard] = host
    return found


def is_host_name(text: str) -> bool:
    """Whether ``text`` has the form of a host name, or of an IPv4 address."""
    return (
        0 < len(text) <= HOST_NAME_LIMIT
        and set(text) <= NAME_CHARACTERS
        and all(
            0 < len(label) <= LABEL_LIMIT and not label.startswith("-") and not label.endswith("-")
            for label in text.removesuffix(".").split(".")
        )
    )


def standard_key(text: str) -> str:
    """``text`` as it is looked up: a NID with its network as :class:`Nid` writes it
    (``1.2.3.4@tcp`` for ``1.2.3.4@tcp0``), everything else as it is.  Empty for a text that is
    never looked up."""
    if text.startswith(MGC) and "@" in text:
        nid = standard_key(text.removeprefix(MGC))
        return f"{MGC}{nid}" if nid else ""
    if "@" in text:
        try:
            return str(Nid.parse(text))
        except ResolutionError:
            return _ipv6_nid(text)
    if ":" in text:
        return text if len(text) <= IPV6_TEXT_LIMIT and set(text) <= IPV6_CHARACTERS else ""
    if not text or not set(text) <= NAME_CHARACTERS:
        return ""
    is_address = "." in text and not set(text) - set("0123456789.")
    return text if not is_address or _is_ipv4(text) else ""


def _ipv6_nid(text: str) -> str:
    nid = ipv6_nid_of_mgc(f"{MGC}{text}") or ""
    network = nid.rstrip("0123456789")
    number = int(nid[len(network) :] or "0")
    # The digit in o2ib is part of the network's name.
    return f"{network}{number or ''}" if nid else ""


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(part and len(part) <= 3 and int(part) < 256 for part in parts)

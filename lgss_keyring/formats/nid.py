"""LNet NIDs (docs/protocol.md 3)."""

from __future__ import annotations

from lgss_keyring.formats.errors import ResolutionError
from lgss_keyring.formats.record import Record

LO = 9
PTL4 = 15
# Networks with IP addresses. In 64 bits there is room for IPv4 only.
IPV4_TYPES = {2: "tcp", 5: "o2ib", 16: "kfi", 18: "efa"}
IPV6_CHARACTERS = frozenset("0123456789abcdefABCDEF:.")
IPV6_TEXT_LIMIT = 45
"""Bytes of an IPv6 address as text (INET6_ADDRSTRLEN without its NUL)."""
TYPES = {**IPV4_TYPES, LO: "lo", 13: "gni", PTL4: "ptl4"}


class Nid(Record):
    """A NID: u32 address, and the network's u16 type and u16 number."""

    address: int
    network_type: int
    network_number: int

    @classmethod
    def from_int(cls, value: int) -> Nid:
        """From 64 bits: address in the low 32, network type << 16 | number above."""
        return cls(value & 0xFFFFFFFF, value >> 48 & 0xFFFF, value >> 32 & 0xFFFF)

    def to_int(self) -> int:
        """The 64 bits that :meth:`from_int` takes."""
        return self.network_type << 48 | self.network_number << 32 | self.address

    @classmethod
    def parse(cls, text: str) -> Nid:
        """From ``192.168.1.5@tcp``, ``10.0.0.1@o2ib3``, ``0@lo``, or ``5@type99-1`` as
        :meth:`__str__` writes unknown types; raises ResolutionError."""
        host, at, network = text.partition("@")
        if network.startswith("type"):
            return cls._parse_unknown(text)
        name = network.rstrip("0123456789")
        if name not in TYPES.values():  # o2ib, ptl4: digits belong to the name
            name = next((known for known in TYPES.values() if network.startswith(known)), "")
        number = network[len(name) :] or "0"
        kind = next((value for value, known in TYPES.items() if known == name), None)
        if (
            not at
            or kind is None
            or not (number.isascii() and number.isdecimal())
            or len(number) > 5
            or int(number) > 0xFFFF
        ):
            raise ResolutionError(f"{text[:60]!a} is not a NID")
        if kind in IPV4_TYPES:
            parts = host.split(".")
            good = len(parts) == 4 and all(
                part.isascii() and part.isdecimal() and len(part) <= 3 and int(part) < 256 for part in parts
            )
            address = int.from_bytes(bytes(int(part) for part in parts), "big") if good else 0
        else:
            good = host.isascii() and host.isdecimal() and len(host) <= 10 and int(host) < 2**32
            address = int(host) if good else 0
        if not good or (kind == LO and address):
            raise ResolutionError(f"{text[:60]!a} is not a NID: its address is wrong")
        return cls(address, kind, int(number))

    @classmethod
    def _parse_unknown(cls, text: str) -> Nid:
        address, _, network = text.partition("@")
        kind, dash, number = network.removeprefix("type").partition("-")
        parts = (address, kind, number or "0")
        if not dash or not all(part.isascii() and part.isdecimal() and len(part) <= 10 for part in parts):
            raise ResolutionError(f"{text[:60]!a} is not a NID")
        nid = cls(*map(int, parts))
        is_too_big = nid.address >= 2**32 or nid.network_type > 0xFFFF or nid.network_number > 0xFFFF
        if is_too_big or nid.network_type in TYPES:
            raise ResolutionError(f"{text[:60]!a} is not a NID")
        return nid

    def __str__(self) -> str:
        name = TYPES.get(self.network_type, f"type{self.network_type}-")
        if self.network_type in IPV4_TYPES:
            host = ".".join(str(byte) for byte in self.address.to_bytes(4, "big"))
        else:
            host = str(self.address)
        return f"{host}@{name}{self.network_number or ''}"


def ip_address(nid: Nid) -> str:
    """The IPv4 address of ``nid`` as a dotted quad, 127.0.0.1 for ``0@lo``.

    Raises ResolutionError for a network whose addresses are not IP addresses.
    """
    if nid.network_type in IPV4_TYPES:
        return ".".join(str(byte) for byte in nid.address.to_bytes(4, "big"))
    if nid.network_type == LO and nid.address == 0:
        return "127.0.0.1"
    raise ResolutionError(
        f"NID {nid} has no IP address",
        hint=f'networks of types tcp, o2ib, kfi, efa, ptl4, lo have names; or [hosts]: "{nid}" = "NAME"',
    )


def is_no_host_address(nid: Nid) -> bool:
    """Whether the IPv4 address of ``nid`` can be no host's: 0.0.0.0/8, multicast or reserved.  Such
    a NID is the first 32 bits of an IPv6 address (docs/protocol.md 2): ``::1``, ``fd00::``,
    ``fe80::``."""
    return nid.network_type in IPV4_TYPES and not 1 <= nid.address >> 24 < 224


def may_be_ipv6(nid: Nid) -> bool:
    """Whether the IPv4 address of ``nid`` can be the first 32 bits of an IPv6 address in use:
    of 2000::/3, or of what :func:`is_no_host_address` finds."""
    in_use = nid.network_type in IPV4_TYPES and 0x20 <= nid.address >> 24 < 0x40
    return in_use or is_no_host_address(nid)


def ipv6_nid_of_mgc(obd_name: str) -> str | None:
    """The NID in the obd name of an MGC (``MGC`` and the NID of its MGS as text) if the address
    in it is an IPv6 address: ``fd00::5@tcp`` of ``MGCfd00::5@tcp``; else None.

    Only the form is checked: hex digits, at least two colons and perhaps dots, and a network of a
    known type with IP addresses.
    """
    address, _, network = obd_name.removeprefix("MGC").partition("@")
    if not obd_name.startswith("MGC") or address.count(":") < 2:
        return None
    if len(address) > IPV6_TEXT_LIMIT or not set(address) <= IPV6_CHARACTERS:
        return None
    name = next((name for name in IPV4_TYPES.values() if network.startswith(name)), "")
    number = network[len(name) :]
    if not name or (number and not (number.isascii() and number.isdecimal() and len(number) <= 5)):
        return None
    return f"{address}@{network}"

"""Key derivation of RFC 3961, as Lustre uses it for all of its enctypes (docs/protocol.md 7)."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from lgss_keyring.formats.errors import Kind, MechanismError
from lgss_keyring.formats.payload import KEY_SIZES
from lgss_keyring.formats.record import Record

BLOCK = 16


class Krb5Keys(Record):
    """Ke encrypts, Ki authenticates wrap tokens, Kc makes MIC tokens."""

    _secret = ("ke", "ki", "kc")

    ke: bytes
    ki: bytes
    kc: bytes


def nfold(data: bytes, length: int) -> bytes:
    """n-fold of RFC 3961, 5.1, with ``length`` in bytes.  Copies of ``data``, each rotated right by 13
    bits more than the one before, are cut into pieces and added in one's complement."""
    size, bits = len(data), len(data) * 8
    total = _lcm(size, length)
    value = int.from_bytes(data, "big")
    copies = b""
    for copy in range(total // size):
        turn = 13 * copy % bits
        copies += ((value >> turn | value << bits - turn) & (1 << bits) - 1).to_bytes(size, "big")
    modulus = (1 << 8 * length) - 1
    result = sum(int.from_bytes(copies[at : at + length], "big") for at in range(0, total, length))
    # End-around carry is arithmetic modulo 2^n - 1, except that all ones do not become 0.
    return ((result - 1) % modulus + 1 if result else 0).to_bytes(length, "big")


def _lcm(first: int, second: int) -> int:
    """The least common multiple."""
    high, low = first, second
    while low:
        high, low = low, high % low
    return first * second // high


_blocks: dict[bytes, bytes] = {}
"""The constants of :func:`derive_key` in the size of a block: folding takes two thirds of its time."""


def derive_key(key: bytes, constant: bytes) -> bytes:
    """DK(key, constant) of RFC 3961, 5.1, with AES in the size of ``key`` (16 or 32
    bytes): random-to-key is the identity (RFC 3962, 6)."""
    # RFC 3961's E with a zero cipher state is, for a single block, AES in ECB mode.
    encrypt = Cipher(AES(key), ECB()).encryptor().update  # noqa: S305
    block = _blocks.get(constant) or nfold(constant, BLOCK)
    _blocks[constant] = block
    derived = b""
    while len(derived) < len(key):
        block = encrypt(block)
        derived += block
    return derived[: len(key)]


def derive_lustre_keys(key: bytes, enctype: int) -> Krb5Keys:
    """Ke, Ki and Kc of docs/protocol.md 7 from the context's ``key``.

    Raises MechanismError for an enctype that Lustre's kernel does not know.
    """
    if KEY_SIZES.get(enctype) != len(key):
        raise MechanismError(
            f"enctype {enctype} with a key of {len(key)} bytes is none that Lustre knows (17, 18, 19, 20)",
            kind=Kind.ENCTYPE,
            hint="give the service principal AES keys, set permitted_enctypes to AES, get new tickets",
        )
    return Krb5Keys(
        derive_key(key, b"\0\0\0\x16\xaa"),
        derive_key(key, b"\0\0\0\x16\x55"),
        derive_key(key, b"\0\0\0\x17\x99"),
    )

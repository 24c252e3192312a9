"""Derivation and MIC tokens against vectors, written independently and off the wire."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats.crypto import rfc3961, tokens
from lgss_keyring.formats.errors import GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN, MechanismError
from lgss_keyring.formats.payload import KEY_SIZES

from .vectors import load

DERIVED = load("krb5-keys-and-tokens.json")
WIRE = load("lustre-wire-tokens.json")["mic"]
WRAPPED = load("lustre-wire-tokens.json")["wrap"]


@pytest.mark.parametrize(
    ("text", "bits", "folded"),
    [
        # RFC 3961, A.1.
        ("012345", 64, "be072631276b1955"),
        ("password", 56, "78a07b6caf85fa"),
        ("Rough Consensus, and Running Code", 64, "bb6ed30870b7f0e0"),
        ("password", 168, "59e4a8ca7c0385c3c37b3f6d2000247cb6e6bd5b3e"),
        ("MASSACHVSETTS INSTITVTE OF TECHNOLOGY", 192, "db3b0d8f0b061e603282b308a50841229ad798fab9540c1b"),
        ("Q", 168, "518a54a2 15a8452a 518a54a2 15a8452a 518a54a2 15"),
        ("ba", 168, "fb25d531 ae897449 9f52fd92 ea9857c4 ba24cf29 7e"),
        ("kerberos", 64, "6b65726265726f73"),
        ("kerberos", 128, "6b65726265726f737b9b5b2b93132b93"),
        ("kerberos", 168, "8372c236344e5f1550cd0747e15d62ca7a5a3bcea4"),
        ("kerberos", 256, "6b65726265726f737b9b5b2b93132b935c9bdcdad95c9899c4cae4dee6d6cae4"),
    ],
)
def test_nfold(text: str, bits: int, folded: str) -> None:
    assert rfc3961.nfold(text.encode(), bits // 8) == bytes.fromhex(folded)


@pytest.mark.parametrize("vector", DERIVED, ids=lambda vector: str(vector["enctype"]))
def test_derived_keys(vector: dict[str, Any]) -> None:
    keys = rfc3961.derive_lustre_keys(bytes.fromhex(vector["K"]), vector["enctype"])
    assert (keys.ke.hex(), keys.ki.hex(), keys.kc.hex()) == (vector["Ke"], vector["Ki"], vector["Kc"])


@pytest.mark.parametrize(("enctype", "size"), [(16, 24), (23, 16), (26, 32), (18, 16), (17, 32), (0, 16)])
def test_no_other_enctype(enctype: int, size: int) -> None:
    with pytest.raises(MechanismError, match=f"enctype {enctype} ") as caught:
        rfc3961.derive_lustre_keys(bytes(size), enctype)
    assert "permitted_enctypes" in caught.value.hint


@pytest.mark.parametrize("vector", DERIVED, ids=lambda vector: str(vector["enctype"]))
def test_mic_tokens(vector: dict[str, Any]) -> None:
    kc, pieces = bytes.fromhex(vector["Kc"]), [bytes.fromhex(vector["message"])]
    acceptor = not vector["initiator"]
    token = tokens.make_mic(kc, vector["enctype"], pieces, sequence=vector["send_seq"], acceptor=acceptor)
    assert token.hex() == vector["mic"]
    assert tokens.verify_mic(kc, vector["enctype"], pieces, token, acceptor=acceptor) == vector["send_seq"]


@pytest.mark.parametrize("vector", WIRE, ids=range(len(WIRE)))
def test_mic_tokens_off_the_wire(vector: dict[str, Any]) -> None:
    token = bytes.fromhex(vector["token"])
    tokens.verify_mic(
        bytes.fromhex(vector["Kc"]),
        vector["enctype"],
        [bytes.fromhex(piece) for piece in vector["pieces"]],
        token,
        acceptor=vector["sender_is_acceptor"],
    )


@pytest.mark.parametrize("enctype", [17, 18, 19, 20])
def test_every_changed_byte_is_noticed(enctype: int) -> None:
    kc = bytes(range(payload_size := KEY_SIZES[enctype]))
    assert len(kc) == payload_size
    token = tokens.make_mic(kc, enctype, [b"message"], sequence=5, acceptor=False)
    for at in range(len(token)):
        changed = token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]
        with pytest.raises(MechanismError) as caught:
            tokens.verify_mic(kc, enctype, [b"message"], changed, acceptor=False)
        assert caught.value.major in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)


def test_wrong_direction_and_message() -> None:
    token = tokens.make_mic(bytes(32), 18, [b"message"], sequence=5, acceptor=True)
    with pytest.raises(MechanismError) as caught:
        tokens.verify_mic(bytes(32), 18, [b"message"], token, acceptor=False)
    assert caught.value.major == GSS_S_DEFECTIVE_TOKEN
    with pytest.raises(MechanismError) as caught:
        tokens.verify_mic(bytes(32), 18, [b"massage"], token, acceptor=True)
    assert caught.value.major == GSS_S_BAD_MIC


@given(st.binary(max_size=64))
def test_any_bytes_are_refused(token: bytes) -> None:
    with pytest.raises(MechanismError):
        tokens.verify_mic(bytes(32), 18, [b"message"], token, acceptor=False)


def keys(vector: dict[str, Any]) -> tuple[bytes, bytes, int]:
    return bytes.fromhex(vector["Ke"]), bytes.fromhex(vector["Ki"]), vector["enctype"]


@pytest.mark.parametrize("vector", DERIVED, ids=lambda vector: str(vector["enctype"]))
def test_wrap_tokens(vector: dict[str, Any]) -> None:
    message, header = bytes.fromhex(vector["message"]), bytes.fromhex(vector["gss_header"])
    acceptor = not vector["initiator"]
    token = tokens.wrap(
        *keys(vector),
        header,
        message,
        sequence=vector["send_seq"],
        acceptor=acceptor,
        confounder=bytes.fromhex(vector["confounder"]),
    )
    assert token.hex() == vector["wrap"]
    assert len(token) == tokens.wrap_size(vector["enctype"], len(message))
    sequence, padded = tokens.unwrap(*keys(vector), header, token, acceptor=acceptor)
    assert sequence == vector["send_seq"] and padded == message + b"\x07" * 7


@pytest.mark.parametrize("vector", WRAPPED, ids=range(len(WRAPPED)))
def test_wrap_tokens_off_the_wire(vector: dict[str, Any]) -> None:
    _, padded = tokens.unwrap(
        *keys(vector),
        bytes.fromhex(vector["gss_header"]),
        bytes.fromhex(vector["token"]),
        acceptor=vector["sender_is_acceptor"],
    )
    assert padded.hex() == vector["padded_message"]


ENCTYPES = st.sampled_from([17, 18, 19, 20])


@given(ENCTYPES, st.binary(max_size=300), st.binary(max_size=50), st.integers(0, 2**64 - 1), st.booleans())
def test_wrapped_messages_come_back(
    enctype: int, message: bytes, header: bytes, sequence: int, acceptor: bool
) -> None:
    ke, ki = bytes(KEY_SIZES[enctype]), bytes(range(KEY_SIZES[enctype]))
    token = tokens.wrap(ke, ki, enctype, header, message, sequence=sequence, acceptor=acceptor)
    got, padded = tokens.unwrap(ke, ki, enctype, header, token, acceptor=acceptor)
    assert got == sequence and padded[: len(message)] == message
    with pytest.raises(MechanismError):
        tokens.unwrap(ke, ki, enctype, header + b"x", token, acceptor=acceptor)
    with pytest.raises(MechanismError):
        tokens.unwrap(ke, ki, enctype, header, token, acceptor=not acceptor)


@given(ENCTYPES, st.lists(st.binary(max_size=100), max_size=5), st.integers(0, 2**64 - 1), st.booleans())
def test_wrapped_pages_come_back(enctype: int, pages: list[bytes], sequence: int, acceptor: bool) -> None:
    ke, ki = bytes(KEY_SIZES[enctype]), bytes(range(KEY_SIZES[enctype]))
    token, sealed = tokens.wrap_bulk(ke, ki, enctype, pages, sequence=sequence, acceptor=acceptor)
    assert len(token) == tokens.wrap_bulk_size(enctype)
    assert [len(text) for text in sealed] == [-(-len(page) // 16) * 16 for page in pages]
    lengths = [len(page) for page in pages]
    assert tokens.unwrap_bulk(ke, ki, enctype, token, sealed, lengths, acceptor=acceptor) == (sequence, pages)


@pytest.mark.parametrize("enctype", [17, 18, 19, 20])
def test_every_changed_byte_of_a_wrap_token_is_noticed(enctype: int) -> None:
    ke, ki = bytes(KEY_SIZES[enctype]), bytes(range(KEY_SIZES[enctype]))
    token = tokens.wrap(ke, ki, enctype, b"header", b"message of some length", sequence=5, acceptor=False)
    bulk, sealed = tokens.wrap_bulk(ke, ki, enctype, [b"page"], sequence=5, acceptor=False)
    for at in range(len(token)):
        with pytest.raises(MechanismError) as caught:
            tokens.unwrap(ke, ki, enctype, b"header", changed(token, at), acceptor=False)
        assert caught.value.major in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
    for at in range(len(bulk)):
        with pytest.raises(MechanismError):
            tokens.unwrap_bulk(ke, ki, enctype, changed(bulk, at), sealed, [4], acceptor=False)
    for at in range(len(sealed[0])):
        if at < 4:
            with pytest.raises(MechanismError):
                tokens.unwrap_bulk(ke, ki, enctype, bulk, [changed(sealed[0], at)], [4], acceptor=False)
    for cut in range(len(token)):
        with pytest.raises(MechanismError):
            tokens.unwrap(ke, ki, enctype, b"header", token[:cut], acceptor=False)


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@given(st.binary(max_size=120))
def test_any_bytes_are_no_wrap_token(data: bytes) -> None:
    with pytest.raises(MechanismError):
        tokens.unwrap(bytes(32), bytes(32), 18, b"", data, acceptor=False)
    with pytest.raises(MechanismError):
        tokens.unwrap_bulk(bytes(32), bytes(32), 18, data, [], [], acceptor=False)

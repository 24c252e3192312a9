"""Flavors, sequence windows and sessions, without a kernel."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring import sptlrpc
from lgss_keyring.formats.errors import (
    GSS_S_BAD_MIC,
    GSS_S_DEFECTIVE_TOKEN,
    GSS_S_DUPLICATE_TOKEN,
    GSS_S_OLD_TOKEN,
    MechanismError,
)
from lgss_keyring.formats.payload import KEY_SIZES, Krb5Context
from lgss_keyring.sptlrpc import FLAVORS, Session, Window, parse_flavor

from .sessions import sides
from .vectors import load

PIECES = [b"header", b"body", b"more"]


@pytest.mark.parametrize(
    ("name", "mechanism", "service_type", "covered", "seals"),
    [
        ("krb5n", "krb5", "n", 0, False),
        ("krb5a", "krb5", "a", 1, False),
        ("krb5i", "krb5", "i", 3, False),
        ("krb5p", "krb5", "p", 3, True),
        ("gssnull", "gssnull", "n", 0, False),
    ],
)
def test_flavors_as_lustre_writes_them(
    name: str, mechanism: str, service_type: str, covered: int, seals: bool
) -> None:
    flavor = parse_flavor(name)
    assert str(flavor) == name and flavor is FLAVORS[name]
    assert (flavor.mechanism, flavor.service_type, flavor.covered(3), flavor.seals) == (
        mechanism, service_type, covered, seals,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", "krb5", "krb5x", "null", "plain", "KRB5I", "a" * 1000])
def test_what_is_no_flavor(name: str) -> None:
    with pytest.raises(sptlrpc.FlavorError, match="krb5i"):
        parse_flavor(name)


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 64))
def test_window_against_a_plain_model(numbers: list[int], size: int) -> None:
    window = Window(size)
    seen: set[int] = set()
    highest: int | None = None
    for number in numbers:
        if highest is not None and number <= highest - size:
            wanted = GSS_S_OLD_TOKEN
        elif number in seen:
            wanted = GSS_S_DUPLICATE_TOKEN
        else:
            wanted = 0
            seen.add(number)
            highest = number if highest is None else max(highest, number)
        try:
            window.accept(number)
            got = 0
        except MechanismError as error:
            got = error.major
        assert got == wanted, (number, highest)


def test_window_far_jumps() -> None:
    window = Window(2048)
    for number in (0, 2**64 - 1, 2**64 - 2048):
        window.accept(number)
    with pytest.raises(MechanismError):
        window.accept(2**64 - 2049)


def test_sequence_numbers_are_given_once() -> None:
    session, _ = sides("krb5i")
    tokens: list[bytes] = []

    def work() -> None:
        for _ in range(500):
            tokens.append(session.sign(PIECES))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(int.from_bytes(token[8:16], "big") for token in tokens)
    assert numbers == list(range(7, 7 + 4000))


@pytest.mark.parametrize("enctype", [17, 18, 19, 20])
@pytest.mark.parametrize("flavor", ["krb5n", "krb5a", "krb5i", "krb5p"])
def test_both_directions(flavor: str, enctype: int) -> None:
    client, server = sides(flavor, enctype)
    for sender, receiver in ((client, server), (server, client)):
        token = sender.sign(PIECES)
        assert bool(token) == (flavor != "krb5n")
        receiver.verify(PIECES, token)
        if flavor == "krb5p":
            sealed = sender.seal(b"gss", b"message")
            assert len(sealed) - 7 <= sender.overhead() <= len(sealed) - 7 + 15
            assert receiver.unseal(b"gss", sealed, 7) == b"message"
            bulk, texts = sender.wrap_bulk([b"one", b"two" * 100])
            assert receiver.unwrap_bulk(bulk, texts, [3, 300]) == [b"one", b"two" * 100]
        else:
            with pytest.raises(sptlrpc.FlavorError):
                sender.seal(b"", b"")
            assert sender.overhead() == len(token)


def test_krb5a_covers_the_header_alone() -> None:
    client, server = sides("krb5a")
    server.verify([b"header", b"changed"], client.sign([b"header", b"body"]))
    with pytest.raises(MechanismError) as caught:
        server.verify([b"Header", b"body"], client.sign([b"header", b"body"]))
    assert caught.value.major == GSS_S_BAD_MIC


def test_no_token_where_the_flavor_has_none() -> None:
    for session in (sides("krb5n")[0], Session(None, parse_flavor("gssnull"), 128)):
        assert session.sign(PIECES) == b"" and session.overhead() == 0
        session.verify(PIECES, b"")
        with pytest.raises(MechanismError) as caught:
            session.verify(PIECES, b"token")
        assert caught.value.major == GSS_S_DEFECTIVE_TOKEN


def majors(function: Any, *arguments: Any) -> int:
    with pytest.raises(MechanismError) as caught:
        function(*arguments)
    return caught.value.major


def test_bad_tokens_are_refused_with_the_status_of_rfc_2743() -> None:
    client, server = sides("krb5p")
    other, _ = sides("krb5p", 17)
    mic, wrapped = client.sign(PIECES), client.seal(b"gss", b"message")
    for token, check in (
        (mic, lambda t: server.verify(PIECES, t)),
        (wrapped, lambda t: server.unseal(b"gss", t)),
    ):
        for at in range(len(token)):
            changed = token[:at] + bytes([token[at] ^ 0x10]) + token[at + 1 :]
            assert majors(check, changed) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
            cut = majors(check, token[:at])
            # A MIC is as long as the token says; a wrap token's end may be anywhere.
            assert cut == GSS_S_DEFECTIVE_TOKEN or (at > 16 and cut == GSS_S_BAD_MIC)
        check(token)
        assert majors(check, token) == GSS_S_DUPLICATE_TOKEN
    assert majors(client.verify, PIECES, client.sign(PIECES)) == GSS_S_DEFECTIVE_TOKEN  # wrong direction
    assert majors(client.unseal, b"gss", client.seal(b"gss", b"m")) == GSS_S_DEFECTIVE_TOKEN
    assert majors(server.verify, PIECES, other.sign(PIECES)) == GSS_S_BAD_MIC  # another context
    late = client.sign(PIECES)
    for _ in range(130):
        server.verify(PIECES, client.sign(PIECES))
    assert majors(server.verify, PIECES, late) == GSS_S_OLD_TOKEN


def test_forged_tokens_do_not_move_the_window() -> None:
    client, server = sides("krb5i")
    token = client.sign(PIECES)
    forged = token[:8] + (2**63).to_bytes(8, "big") + token[16:]
    assert majors(server.verify, PIECES, forged) == GSS_S_BAD_MIC
    server.verify(PIECES, token)


def test_length_that_does_not_fit_the_padding() -> None:
    client, server = sides("krb5p")
    assert majors(server.unseal, b"", client.seal(b"", b"x" * 20), 16) == GSS_S_DEFECTIVE_TOKEN
    assert majors(server.unseal, b"", client.seal(b"", b"x" * 20), 33) == GSS_S_DEFECTIVE_TOKEN
    assert server.unseal(b"", client.seal(b"", b"x" * 20), 20) == b"x" * 20
    assert server.unseal(b"", client.seal(b"", b""), 0) == b""


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(token: bytes) -> None:
    _, server = sides("krb5p")
    assert majors(server.verify, PIECES, token) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
    assert majors(server.unseal, b"", token) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
    assert majors(server.unwrap_bulk, token, [], []) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)


WIRE = load("lustre-wire-tokens.json")


@pytest.mark.parametrize("kind", ["mic", "wrap"])
def test_tokens_off_the_wire(kind: str) -> None:
    """With the library's own verify and unseal: each once, and not twice."""
    for vector in WIRE[kind]:
        size = KEY_SIZES[vector["enctype"]]
        keys = [bytes.fromhex(vector.get(name, "00" * size)) for name in ("Ke", "Ki", "Kc")]
        flags = 2 | (1 if vector["sender_is_acceptor"] else 0)
        context = Krb5Context(2**31, flags, 0, vector["enctype"], *keys)
        session = Session(context, parse_flavor("krb5i" if kind == "mic" else "krb5p"), 2048)
        token = bytes.fromhex(vector["token"])
        if kind == "mic":
            pieces = [bytes.fromhex(piece) for piece in vector["pieces"]]
            session.verify(pieces, token)
            assert majors(session.verify, pieces, token) == GSS_S_DUPLICATE_TOKEN
        else:
            header = bytes.fromhex(vector["gss_header"])
            assert session.unseal(header, token).hex() == vector["padded_message"]
            assert majors(session.unseal, header, token) == GSS_S_DUPLICATE_TOKEN


def test_reverse_sessions_go_the_other_way() -> None:
    client, server = sides("krb5p")
    server.verify(PIECES, client.sign(PIECES))
    back, forth = server.reversed(), client.reversed()
    assert back.initiator and not forth.initiator
    token = back.sign(PIECES)
    assert int.from_bytes(token[8:16], "big") == 8  # what the server would have received next
    forth.verify(PIECES, token)
    back.verify(PIECES, forth.sign(PIECES))
    assert majors(client.verify, PIECES, back.sign(PIECES)) == GSS_S_DEFECTIVE_TOKEN


def test_window_of_the_other_sides_choice_is_bounded() -> None:
    window = Window(2**32 - 1)
    window.accept(0)
    window.accept(70000)
    with pytest.raises(MechanismError) as caught:
        window.accept(1)
    assert caught.value.major == GSS_S_OLD_TOKEN

"""The acceptor, by a client written here from RFC 2203 and 5531 alone."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gssapi.raw as gss
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgss_keyring.formats.crypto import rfc3961, tokens
from lgss_keyring.formats.payload import ENCTYPES, Krb5Context
from tests.support.realm import Realm
from tests.support.site import PROGRAM, VERSION, AcceptorProcess

DATA, INIT, CONTINUE_INIT, DESTROY = range(4)
NONE, INTEGRITY, PRIVACY = 1, 2, 3
WINDOW = 128


def xdr(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def take(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from(">I", data)
    return data[4 : 4 + length], data[4 + length + -length % 4 :]


def header(xid: int = 7, rpcvers: int = 2, prog: int = PROGRAM, vers: int = VERSION, proc: int = 0) -> bytes:
    return struct.pack(">IIIIII", xid, 0, rpcvers, prog, vers, proc)


def cred(gss_proc: int, seq: int, service: int, handle: bytes, version: int = 1) -> bytes:
    body = struct.pack(">IIII", version, gss_proc, seq, service) + xdr(handle)
    return struct.pack(">I", 6) + xdr(body)


NO_AUTH = struct.pack(">II", 0, 0)
DENIED = struct.pack(">III", 1, 1, 1)  # REPLY, MSG_DENIED, AUTH_ERROR; auth_stat follows


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.handle = b""
        self.context: Any = None
        self.verifier_flavor = -1
        self.verifier = b""
        self.result = (-1, -1, -1)
        self.rest = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, record: bytes, fragment: int = 1 << 20) -> None:
        pieces = [record[i : i + fragment] for i in range(0, len(record), fragment)]
        last = len(pieces) - 1
        self.socket.sendall(
            b"".join(struct.pack(">I", (i == last) << 31 | len(p)) + p for i, p in enumerate(pieces))
        )

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def receive(self) -> bytes:
        record = b""
        while True:
            (mark,) = struct.unpack(">I", self._exactly(4))
            record += self._exactly(mark & 0x7FFFFFFF)
            if mark >> 31:
                return record

    def call(self, record: bytes, fragment: int = 1 << 20) -> bytes:
        """The reply behind its xid."""
        self.send(record, fragment)
        reply = self.receive()
        assert reply[:4] == record[:4]
        return reply[4:]

    def create(self, fragment: int = 1 << 20) -> None:
        name = gss.import_name(b"lustre_mds@localhost", gss.NameType.hostbased_service)
        step = gss.init_sec_context(name, flags=gss.RequirementFlag.mutual_authentication)
        self.context = step.context
        assert step.token is not None
        record = header() + cred(INIT, 0, NONE, b"") + NO_AUTH + xdr(step.token)
        self.parse_init(self.call(record, fragment))
        if self.result[0] == 0:
            gss.init_sec_context(name, context=self.context, input_token=self.token)

    def parse_init(self, reply: bytes) -> None:
        kind, accepted, self.verifier_flavor = struct.unpack_from(">III", reply)
        assert (kind, accepted) == (1, 0)
        self.verifier, rest = take(reply[12:])
        assert rest[:4] == bytes(4)
        self.handle, rest = take(rest[4:])
        self.result = struct.unpack_from(">III", rest)
        self.token, self.rest = take(rest[12:])

    def data_record(self, seq: int, service: int = NONE, gss_proc: int = DATA, proc: int = 0) -> bytes:
        signed = header(xid=seq, proc=proc) + cred(gss_proc, seq, service, self.handle)
        inner = struct.pack(">I", seq)
        arguments = b""
        if service == INTEGRITY:
            arguments = xdr(inner) + xdr(gss.get_mic(self.context, inner))
        elif service == PRIVACY:
            arguments = xdr(gss.wrap(self.context, inner).message)
        return signed + struct.pack(">I", 6) + xdr(gss.get_mic(self.context, signed)) + arguments

    def good(self, seq: int, reply: bytes) -> bytes:
        """Check an accepted reply's verifier; what follows it."""
        assert struct.unpack_from(">III", reply) == (1, 0, 6)
        verifier, rest = take(reply[12:])
        gss.verify_mic(self.context, struct.pack(">I", seq), verifier)
        return rest


@pytest.fixture(scope="module", params=sorted(ENCTYPES))
def enctype(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def each_realm(enctype: int) -> Iterator[Realm]:
    yield from entered([ENCTYPES[enctype]])


@pytest.fixture(scope="module")
def realm() -> Iterator[Realm]:
    yield from entered(None)


def entered(enctypes: list[str] | None) -> Iterator[Realm]:
    with Realm(enctypes=enctypes) as realm:
        realm.populate("localhost")
        realm.kinit("alice", 0, 0)
        yield realm


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, realm: Realm) -> None:
    for name, value in realm.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def acceptor(realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcceptorProcess]:
    process = AcceptorProcess(realm, realm.directory / "server.keytab", tmp_path_factory.mktemp("acceptor"))
    yield process
    process.close()


@pytest.fixture
def client(acceptor: AcceptorProcess, environment: None) -> Iterator[Client]:
    client = Client(acceptor.port)
    yield client
    client.close()


def test_both_sides_derive_the_same_keys(
    each_realm: Realm, enctype: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in each_realm.env.items():
        monkeypatch.setenv(name, value)
    process = AcceptorProcess(each_realm, each_realm.directory / "server.keytab", tmp_path)
    client = Client(process.port)
    try:
        client.create()
        assert client.result == (0, 0, WINDOW)
        assert client.verifier_flavor == 6
        gss.verify_mic(client.context, struct.pack(">I", WINDOW), client.verifier)
        assert client.rest == b""
        client.good(1, client.call(client.data_record(1)))
        (known,) = process.contexts()
        assert process.contexts_file.stat().st_mode & 0o777 == 0o600
    finally:
        client.close()
        process.close()
    assert known["handle"] == client.handle.hex()
    assert known["initiator"] == "alice@LGSS.TEST"
    assert known["target"] == "lustre_mds/localhost@LGSS.TEST"
    theirs = Krb5Context.unpack(bytes.fromhex(known["context"]))
    lucid: Any = gss.krb5_export_lucid_sec_context(client.context, 1)
    cfx = lucid.cfx_kd
    ours = rfc3961.derive_lustre_keys(cfx.acceptor_subkey or cfx.ctx_key, enctype)
    assert theirs.enctype == enctype
    assert not theirs.flags & 1
    assert (theirs.ke, theirs.ki, theirs.kc) == (ours.ke, ours.ki, ours.kc)
    mic = tokens.make_mic(theirs.kc, enctype, [b"message"], sequence=5, acceptor=True)
    assert tokens.verify_mic(ours.kc, enctype, [b"message"], mic, acceptor=True) == 5


@pytest.mark.parametrize("service", [NONE, INTEGRITY, PRIVACY])
def test_null_call_with_each_service(client: Client, service: int) -> None:
    client.create()
    rest = client.good(9, client.call(client.data_record(9, service)))
    assert rest[:4] == bytes(4)
    body = rest[4:]
    if service == INTEGRITY:
        inner, tail = take(body)
        mic, tail = take(tail)
        gss.verify_mic(client.context, inner, mic)
        assert (inner, tail) == (struct.pack(">I", 9), b"")
    elif service == PRIVACY:
        token, tail = take(body)
        assert (gss.unwrap(client.context, token).message, tail) == (struct.pack(">I", 9), b"")
    else:
        assert body == b""


def test_replays_and_old_numbers_are_dropped_silently(client: Client) -> None:
    client.create()
    first = client.data_record(1)
    client.good(1, client.call(first))
    client.good(200, client.call(client.data_record(200)))
    client.good(73, client.call(client.data_record(73)))  # the lowest of a window of 128
    for record in (first, client.data_record(72), client.data_record(73)):
        client.send(record)
    # The next answer is of the next new number: nothing came between.
    client.good(201, client.call(client.data_record(201)))


@pytest.mark.parametrize("service", [NONE, INTEGRITY, PRIVACY])
@pytest.mark.parametrize("bare", [False, True])
def test_destroy_wrapped_or_bare(client: Client, service: int, bare: bool) -> None:
    # libtirpc wraps the void argument, Linux's kernel does not.
    client.create()
    record = client.data_record(1, service, DESTROY)
    if bare:
        signed = header(xid=1) + cred(DESTROY, 1, service, client.handle)
        record = signed + struct.pack(">I", 6) + xdr(gss.get_mic(client.context, signed))
    assert client.good(1, client.call(record)) == bytes(4)
    assert client.call(client.data_record(2)) == DENIED + struct.pack(">I", 13)


def test_a_forged_header_mic_is_a_credential_problem(client: Client) -> None:
    client.create()
    record = bytearray(client.data_record(1))
    record[-1] ^= 1
    assert client.call(bytes(record)) == DENIED + struct.pack(">I", 13)


def test_a_number_beyond_maxseq_is_a_context_problem(client: Client) -> None:
    client.create()
    assert client.call(client.data_record(0x80000001)) == DENIED + struct.pack(">I", 14)


def test_other_procedures_and_garbage_arguments(client: Client) -> None:
    client.create()
    assert client.good(1, client.call(client.data_record(1, proc=5))) == struct.pack(">I", 3)
    assert client.good(2, client.call(client.data_record(2) + b"more")) == struct.pack(">I", 4)


@pytest.mark.parametrize(
    ("record", "reply"),
    [
        (header(rpcvers=3) + NO_AUTH * 2, struct.pack(">IIIII", 1, 1, 0, 2, 2)),
        (header(prog=1) + NO_AUTH * 2, struct.pack(">IIIII", 1, 0, 0, 0, 1)),
        (header(vers=9) + NO_AUTH * 2, struct.pack(">7I", 1, 0, 0, 0, 2, VERSION, VERSION)),
        (header() + NO_AUTH * 2, struct.pack(">IIIII", 1, 0, 0, 0, 0)),
        (header() + struct.pack(">I", 1) + xdr(b"") + NO_AUTH, DENIED + struct.pack(">I", 5)),
        (header() + struct.pack(">I", 6) + xdr(b"junk") + NO_AUTH, DENIED + struct.pack(">I", 1)),
        (header() + cred(DATA, 1, NONE, b"none") + NO_AUTH, DENIED + struct.pack(">I", 13)),
        (
            header() + cred(CONTINUE_INIT, 0, NONE, b"none") + NO_AUTH + xdr(b"t"),
            DENIED + struct.pack(">I", 13),
        ),
        (header() + cred(INIT, 0, NONE, b"") + NO_AUTH, struct.pack(">IIIII", 1, 0, 0, 0, 4)),
        (
            header(proc=3) + cred(INIT, 0, NONE, b"") + NO_AUTH + xdr(b"t"),
            struct.pack(">IIIII", 1, 0, 0, 0, 3),
        ),
    ],
)
def test_protocol_errors(client: Client, record: bytes, reply: bytes) -> None:
    assert client.call(record) == reply


def test_a_bad_token_is_answered_with_the_status(client: Client) -> None:
    client.parse_init(client.call(header() + cred(INIT, 0, NONE, b"") + NO_AUTH + xdr(b"junk")))
    assert client.verifier_flavor == 0
    assert client.result[0] == 9 << 16  # GSS_S_DEFECTIVE_TOKEN


def test_call_in_fragments_of_one_byte(client: Client) -> None:
    client.create(fragment=1)
    assert client.result[0] == 0


def test_a_record_over_the_limit_ends_the_connection(client: Client) -> None:
    client.socket.sendall(struct.pack(">I", 0xFFFFFFFF))
    with pytest.raises((EOFError, ConnectionResetError)):
        client.receive()


FAULT_NAMES = [
    "bad-verifier",
    "no-verifier",
    "wrong-window",
    "restart-once",
    "restart-always",
    "drop-once",
    "gss-failure",
    "continue-forever",
    "no-handle",
    "huge-handle",
    "delay",
    "trailing-bytes",
    "other-xid",
    "one-byte-fragments",
]


@pytest.mark.parametrize("fault", FAULT_NAMES)
def test_faults(realm: Realm, environment: None, tmp_path: Path, fault: str) -> None:
    keytab = realm.directory / "server.keytab"
    process = AcceptorProcess(realm, keytab, tmp_path, "--fault", fault)
    client = Client(process.port)
    begun = time.monotonic()
    try:
        if fault in ("restart-once", "restart-always"):
            for again in (True, fault == "restart-always"):
                if again:
                    client.send(header() + cred(INIT, 0, NONE, b"") + NO_AUTH + xdr(b"t"))
                    assert client.receive()[4:] == DENIED + struct.pack(">I", 13)
                else:
                    client.create()
                    assert client.result[0] == 0
        elif fault == "drop-once":
            client.send(header() + cred(INIT, 0, NONE, b"") + NO_AUTH + xdr(b"t"))
            client.create()
            assert client.result[0] == 0
        elif fault == "other-xid":
            client.send(header() + NO_AUTH * 2)
            assert client.receive()[:4] != header()[:4]
        else:
            client.create()
            expected = {"gss-failure": 13 << 16, "continue-forever": 1}.get(fault, 0)
            assert client.result[0] == expected
            assert (client.verifier_flavor == 6) == (expected == 0 and fault != "no-verifier")
            assert len(client.handle) == {"no-handle": 0, "gss-failure": 0, "huge-handle": 1 << 16}.get(
                fault, 8
            )
            assert client.rest == (bytes(4) if fault == "trailing-bytes" else b"")
            assert (time.monotonic() - begun > 1.9) == (fault == "delay")
            if client.verifier_flavor == 6:
                window = struct.pack(">I", client.result[2])
                if fault in ("bad-verifier", "wrong-window"):
                    with pytest.raises(gss.GSSError):
                        gss.verify_mic(client.context, window, client.verifier)
                else:
                    gss.verify_mic(client.context, window, client.verifier)
    finally:
        client.close()
        process.close()


PREFIXES = [b"", header(), header() + cred(INIT, 0, NONE, b""), header() + struct.pack(">I", 6)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=st.sampled_from(PREFIXES), tail=st.binary(max_size=200), fragment=st.integers(1, 64))
def test_any_record_leaves_the_acceptor_answering(
    client: Client, prefix: bytes, tail: bytes, fragment: int
) -> None:
    client.send(prefix + tail, fragment) if prefix + tail else None
    client.send(struct.pack(">I", 0xABCDEF01) + header()[4:] + NO_AUTH * 2)
    # Of the random record there is one answer or none; the connection goes on.
    for _ in range(2):
        if client.receive()[:4] == b"\xab\xcd\xef\x01":
            return
    pytest.fail("no answer to a ping")

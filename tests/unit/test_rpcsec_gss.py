"""The channel against hand-made servers: what it sends, and what it accepts."""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats.errors import ChannelError
from lgss_keyring.worker.channel import rpcsec_gss
from lgss_keyring.worker.channel.interface import Reply
from lgss_keyring.worker.channel.rpcsec_gss import RpcsecGssChannel
from lgss_keyring.worker.channel.rpcsec_messages import Program, Reader, Records

from .almost import single_faults

Serve = Callable[[socket.socket, bytes], None]


@contextmanager
def server(serve: Serve, timeout: float = 2.0) -> Iterator[RpcsecGssChannel]:
    """One connection, each record passed on to ``serve``."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                while True:
                    mark = connection.recv(4, socket.MSG_WAITALL)
                    if len(mark) < 4:
                        return
                    length = struct.unpack(">I", mark)[0] & 0x7FFFFFFF
                    serve(connection, connection.recv(length, socket.MSG_WAITALL))
            except OSError:
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    channel = RpcsecGssChannel("127.0.0.1", listener.getsockname()[1], 0x20004C47, 1, 1.0, timeout)
    try:
        yield channel
    finally:
        channel.close()
        listener.close()
        thread.join(5)


def record(body: bytes) -> bytes:
    return struct.pack(">I", 1 << 31 | len(body)) + body


def opaque(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def accepted(xid: bytes, result: bytes, verifier: bytes = b"mic!", flavor: int = 6, state: int = 0) -> bytes:
    return record(
        xid + struct.pack(">III", 1, 0, flavor) + opaque(verifier) + struct.pack(">I", state) + result
    )


def init_res(
    major: int = 0, minor: int = 0, window: int = 128, handle: bytes = b"hdl", token: bytes = b"tok"
) -> bytes:
    return opaque(handle) + struct.pack(">III", major, minor, window) + opaque(token)


def answer_with(make: Callable[[bytes], bytes]) -> Serve:
    return lambda connection, call: connection.sendall(make(call[:4]))


def test_init_call_is_the_rfcs() -> None:
    calls: list[bytes] = []

    def serve(connection: socket.socket, call: bytes) -> None:
        calls.append(call)
        connection.sendall(accepted(call[:4], init_res()))

    with server(serve) as channel:
        reply = channel.exchange(b"token", b"")
        assert reply == Reply(b"hdl", 0, 0, 128, b"tok", (b"\0\0\0\x80", b"mic!"))
        channel.exchange(b"second", b"hdl")
    credential = struct.pack(">IIIII", 1, 1, 0, 1, 0)
    rest = struct.pack(">IIIIII", 0, 2, 0x20004C47, 1, 0, 6) + opaque(credential) + bytes(8)
    assert calls[0][4:] == rest + opaque(b"token")
    credential = struct.pack(">IIII", 1, 2, 0, 1) + opaque(b"hdl")
    rest = struct.pack(">IIIIII", 0, 2, 0x20004C47, 1, 0, 6) + opaque(credential) + bytes(8)
    assert calls[1][4:] == rest + opaque(b"second")
    assert calls[0][:4] != calls[1][:4]


def test_one_byte_and_empty_fragments_are_legal() -> None:
    def serve(connection: socket.socket, call: bytes) -> None:
        body = accepted(call[:4], init_res())[4:]
        pieces = [struct.pack(">I", 0)]
        pieces += [struct.pack(">I", 1) + body[i : i + 1] for i in range(len(body))]
        connection.sendall(b"".join(pieces) + struct.pack(">I", 1 << 31))

    with server(serve) as channel:
        assert channel.exchange(b"t", b"").handle == b"hdl"


def test_replies_to_other_calls_are_passed_over() -> None:
    def serve(connection: socket.socket, call: bytes) -> None:
        stray = bytes(b ^ 0xFF for b in call[:4])
        connection.sendall(accepted(stray, init_res()) + accepted(call[:4], init_res(token=b"mine")))

    with server(serve) as channel:
        assert channel.exchange(b"t", b"").token == b"mine"


def test_no_verifier_is_wanted_before_the_last_leg() -> None:
    with server(answer_with(lambda xid: accepted(xid, init_res(major=1), b"", 0))) as channel:
        reply = channel.exchange(b"t", b"")
    assert (reply.major, reply.proof) == (1, None)


@pytest.mark.parametrize(
    ("make", "number", "kind"),
    [
        (lambda xid: accepted(xid, init_res(), b"", 0), errno.EPROTO, "bad-verifier"),
        (lambda xid: accepted(xid, init_res() + b"\0\0\0\0"), errno.EPROTO, "malformed-reply"),
        (lambda xid: accepted(xid, init_res()[:-1]), errno.EPROTO, "malformed-reply"),
        (lambda xid: accepted(xid, init_res(handle=bytes(1025))), errno.EPROTO, "malformed-reply"),
        (lambda xid: accepted(xid, init_res(), bytes(401)), errno.EPROTO, "malformed-reply"),
        (lambda xid: accepted(xid, init_res(token=b"x")[:-1] + b"\1"), errno.EPROTO, "malformed-reply"),
        (lambda xid: accepted(xid, b"", state=1), errno.EPROTONOSUPPORT, "rpc-refused"),
        (lambda xid: accepted(xid, b"", state=99), errno.EPROTONOSUPPORT, "rpc-refused"),
        (
            lambda xid: record(xid + struct.pack(">IIIII", 1, 1, 0, 3, 4)),
            errno.EPROTONOSUPPORT,
            "rpc-refused",
        ),
        (lambda xid: record(xid + struct.pack(">IIII", 1, 1, 1, 13)), errno.EACCES, "start-again"),
        (lambda xid: record(xid + struct.pack(">IIII", 1, 1, 1, 2)), errno.EACCES, "start-again"),
        (lambda xid: record(xid + struct.pack(">IIII", 1, 1, 1, 5)), errno.EACCES, "rpc-denied"),
        (lambda xid: record(xid + struct.pack(">IIII", 1, 1, 7, 5)), errno.EPROTO, "malformed-reply"),
        (lambda xid: record(xid + struct.pack(">I", 0)), errno.EPROTO, "malformed-reply"),
        (lambda xid: record(b"no") * 9, errno.EPROTO, "malformed-reply"),
        (lambda xid: struct.pack(">I", 0x7FFFFFFF), errno.EPROTO, "malformed-reply"),
        (
            lambda xid: struct.pack(">I", 131072) + bytes(131072) + b"\0\0\0\1x",
            errno.EPROTO,
            "malformed-reply",
        ),
        (lambda xid: record(b"strayxid" * 2) * 9, errno.EPROTO, "malformed-reply"),
    ],
)
def test_bad_answers(make: Callable[[bytes], bytes], number: int, kind: str) -> None:
    with server(answer_with(make)) as channel, pytest.raises(ChannelError) as caught:
        channel.exchange(b"t", b"")
    assert (caught.value.errno, caught.value.kind) == (number, kind), caught.value.reason


def test_slow_drops_do_not_stretch_the_limit() -> None:
    def serve(connection: socket.socket, call: bytes) -> None:
        connection.sendall(struct.pack(">I", 1 << 31 | 1000))
        for _ in range(40):
            time.sleep(0.05)
            connection.sendall(b"x")

    started = time.monotonic()
    with server(serve, timeout=0.4) as channel, pytest.raises(ChannelError) as caught:
        channel.exchange(b"t", b"")
    assert caught.value.errno == errno.ETIMEDOUT
    assert time.monotonic() - started < 5


def test_limit_that_is_over_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by 10 s at each look: none of the 30 s is left at the third."""
    clock = itertools.count(0, 10)
    monkeypatch.setattr(rpcsec_gss, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with server(lambda connection, call: connection.sendall(b"\0\0\1\0"), timeout=30) as channel:
        with pytest.raises(ChannelError) as caught:
            channel.exchange(b"t", b"")
    assert (caught.value.errno, caught.value.kind) == (errno.ETIMEDOUT, "acceptor-silent")
    assert "within 30 s" in caught.value.reason


def test_server_that_takes_no_connection() -> None:
    """The queue of its listener is full, so the kernel does not answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        channel = RpcsecGssChannel("127.0.0.1", listener.getsockname()[1], 1, 1, 0.2, 0.3)
        stack.callback(channel.close)
        for connect in (channel.connect, lambda: channel.exchange(b"t", b"")):
            with pytest.raises(ChannelError, match=r"no connection to .* within 0\.2 s") as caught:
                connect()
            assert (caught.value.errno, caught.value.kind) == (errno.ETIMEDOUT, "acceptor-unreachable")
            assert "[rpcsec_gss] connect_timeout" in caught.value.hint
            assert not channel.is_single_use
            assert channel._socket is not None
            channel.close()


def test_closed_connection() -> None:
    with server(lambda connection, call: connection.close()) as channel:
        with pytest.raises(ChannelError) as caught:
            channel.exchange(b"t", b"")
    assert caught.value.errno == errno.ECONNRESET


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        channel = RpcsecGssChannel("127.0.0.1", held.getsockname()[1], 1, 1, 1.0, 1.0)
        with pytest.raises(ChannelError) as caught:
            channel.exchange(b"t", b"")
    assert caught.value.errno == errno.ECONNREFUSED
    assert "[rpcsec_gss] port" in caught.value.hint


@pytest.mark.parametrize("major", [0, 1])
def test_replies_with_one_fault_are_replies_or_channel_errors(major: int) -> None:
    program = Program("127.0.0.1:1", 1, 1)
    kinds = {"malformed-reply", "bad-verifier", "rpc-refused", "rpc-denied", "start-again"}
    for data in single_faults(accepted(b"", init_res(major, 7))[4:], ">"):
        try:
            reply = program.reply(b"xid!" + data)
        except ChannelError as error:
            assert error.kind in kinds and error.errno
            continue
        result = init_res(reply.major, reply.minor, reply.seq_window, reply.handle, reply.token)
        assert data.startswith(struct.pack(">II", 1, 0)) and data.endswith(bytes(4) + result)
        # The last reply has the acceptor's MIC of the window, as a verifier of RPCSEC_GSS.
        assert (reply.proof is None) == (reply.major != 0)
        if reply.proof is not None:
            message, mic = reply.proof
            assert message == struct.pack(">I", reply.seq_window)
            assert data == accepted(b"", result, mic)[4:]


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\5abcd", b"\0\0\0\3abc", b"\0\0\0\3abc\1"])
def test_reader_takes_whole_opaques_only(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"left|padding"):
        Reader(data).opaque(8)
    assert Reader(b"\0\0\0\3abc\0").opaque(3) == b"abc"


@given(st.binary(max_size=100), st.integers(0, 64))
def test_reader_never_reads_past_the_end(data: bytes, limit: int) -> None:
    reader = Reader(data)
    try:
        while True:
            assert len(reader.opaque(limit)) <= limit
    except ValueError:
        pass


def test_it_goes_on_without_waiting() -> None:
    """A channel that is not waited for: each step returns at once."""
    come = threading.Event()

    def serve(connection: socket.socket, call: bytes) -> None:
        come.wait(10)
        whole = accepted(call[:4], init_res())
        for part in (whole[:5], whole[5:]):
            connection.sendall(part)
            time.sleep(0.05)

    with server(serve) as channel:
        assert channel.fileno() == -1
        channel.begin(b"token", b"")
        steps = 0
        while not channel.events & select.POLLIN:
            assert channel.go_on() is None
            steps += 1
        assert 1 <= steps < 1000 and channel.fileno() >= 0
        assert channel.go_on() is channel.go_on() is None
        come.set()
        while (reply := channel.go_on()) is None:
            select.select([channel], [], [], 5)
    assert reply.handle == b"hdl"


def test_a_server_that_takes_no_connection() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    held = [socket.socket() for _ in range(4)]
    try:
        for each in held:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        channel = RpcsecGssChannel("127.0.0.1", listener.getsockname()[1], 1, 1, 0.3, 5.0)
        channel.begin(b"t", b"")
        assert channel.go_on() is None and channel.events == select.POLLOUT
        with pytest.raises(ChannelError) as caught:
            channel.exchange(b"t", b"")
        assert (caught.value.errno, caught.value.kind) == (errno.ETIMEDOUT, "acceptor-unreachable")
        channel.close()
    finally:
        for each in (*held, listener):
            each.close()


def test_a_server_that_takes_no_call_holds_nobody() -> None:
    """Its window is full: what is left of the call waits, until the time is over."""
    listener = socket.create_server(("127.0.0.1", 0))
    channel = RpcsecGssChannel("127.0.0.1", listener.getsockname()[1], 1, 1, 1.0, 0.3)
    try:
        with pytest.raises(ChannelError) as caught:
            channel.exchange(bytes(30_000_000), b"")
        assert (caught.value.errno, caught.value.kind) == (errno.ETIMEDOUT, "acceptor-silent")
    finally:
        channel.close()
        listener.close()


@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), max_size=5), st.data())
def test_records_in_any_pieces(bodies: list[list[bytes]], data: st.DataObject) -> None:
    stream = b""
    for fragments in bodies:
        for fragment in fragments[:-1]:
            stream += struct.pack(">I", len(fragment)) + fragment
        stream += struct.pack(">I", 1 << 31 | len(fragments[-1])) + fragments[-1]
    records, found = Records(), []
    while stream:
        length = data.draw(st.integers(1, len(stream)))
        records.feed(stream[:length])
        stream = stream[length:]
        while (record := records.next()) is not None:
            found.append(record)
    assert found == [b"".join(fragments) for fragments in bodies]

"""The kernel test module from Python: its trigger, its acceptor, and init_channel.

For the tests that run inside the virtual machine. What the module does is written
in lgss_testmod/README.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import select
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

TRIGGER = Path("/dev/lgss_trigger")
ACCEPTOR = Path("/dev/lgss_acceptor")
INIT_CHANNEL = Path("/sys/fs/lustre/sptlrpc/gss/init_channel")
DEBUG_LEVEL = Path("/sys/fs/lustre/sptlrpc/gss/lgss_keyring/debug_level")
PARAMETERS = Path("/sys/module/lgss_testmod/parameters")

REPLY_SIZE = 8192

_keyutils = ctypes.CDLL("libkeyutils.so.1", use_errno=True)


@dataclass(frozen=True)
class Report:
    """What came of one trigger."""

    description: str
    error: int
    """0, or the negative errno that the kernel would give its caller."""
    stage: str
    """Where it ended: lock, request_key, bind or update."""
    found: bool
    """Whether the key was there already, bound by an earlier trigger."""
    serial: int
    lock_us: int
    request_us: int
    """How long request_key() took."""
    bound_us: int
    """From the call of request_key() until the context was bound."""
    update_us: int
    """From the call of request_key() until the context was updated or given up."""
    early_updates: int
    """How many updates got EAGAIN before the context was bound."""
    malformed: int
    """How many updates were refused as malformed while it was pending."""
    seq_win: int
    gss_major: int
    payload: bytes
    """The update that was accepted, empty if there was none."""


def parse_report(text: str) -> Report:
    """Read what the trigger device gives back."""
    values: dict[str, object] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        values[name] = value
    values["found"] = values["found"] == "1"
    values["payload"] = bytes.fromhex(str(values["payload"]))
    for field in fields(Report):
        if field.type == "int":
            values[field.name] = int(str(values[field.name]))
    return Report(**values)  # type: ignore[arg-type]


def request_line(
    description: str,
    callout: str,
    *,
    root: bool,
    hold: bool = False,
    timeout_ms: int = 30000,
    bind_delay_ms: int = 0,
    when: str = "now",
) -> bytes:
    """Return what to write to the trigger device; ``when``: now, close or channel."""
    return (
        f"description={description} root={root:d} hold={hold:d} timeout_ms={timeout_ms} "
        f"bind_delay_ms={bind_delay_ms} when={when} callout={callout}"
    ).encode()


def pull(line: bytes) -> Report:
    """Request a key from this very process; raises OSError where the write fails."""
    device = os.open(TRIGGER, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(device, line)
        return parse_report(os.read(device, 65536).decode())
    finally:
        os.close(device)


def become(uid: int) -> None:
    """Become an ordinary user for good, with a session keyring of its own."""
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        # A user that no passwd file knows is possible on a Lustre client.
        gid = uid
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # As a login would: otherwise this is root's session, and keys are found there.
    if _keyutils.keyctl_join_session_keyring(None) == -1:
        raise OSError(ctypes.get_errno(), "keyctl_join_session_keyring")


def in_child(work: Callable[[], bytes], uid: int = 0) -> bytes:
    """Do something in a forked child, as a user; its OSError becomes ours."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                become(uid)
            answer = b"+" + work()
        except OSError as error:
            answer = b"-%d" % (error.errno or errno.EIO)
        except BaseException as error:
            answer = b"!" + repr(error).encode()
        # Not sys.exit(): the child must not run what pytest has set up for its end.
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    kind, rest = answer[:1], answer[1:]
    if kind == b"-":
        number = int(rest)
        raise OSError(number, os.strerror(number))
    if kind != b"+":
        raise RuntimeError(f"the child failed: {rest.decode() or 'it said nothing'}")
    return rest


def trigger(
    description: str,
    callout: str,
    *,
    uid: int = 0,
    root: bool | None = None,
    hold: bool = False,
    timeout_ms: int = 30000,
    bind_delay_ms: int = 0,
) -> Report:
    """Make the kernel request a key on behalf of a process of a user.

    `root` says which kind of context it is: root's own, whose key is dropped, or a
    user's. It follows from uid unless it is given: a Lustre client also makes root
    contexts from within an ordinary user's process.
    """
    line = request_line(
        description,
        callout,
        root=uid == 0 if root is None else root,
        hold=hold,
        timeout_ms=timeout_ms,
        bind_delay_ms=bind_delay_ms,
    )

    def work() -> bytes:
        device = os.open(TRIGGER, os.O_RDWR | os.O_CLOEXEC)
        os.write(device, line)
        return os.read(device, 65536)

    return parse_report(in_child(work, uid).decode())


class ChannelRecord(ctypes.Structure):
    """What one write to init_channel consists of (docs/protocol.md 6)."""

    _fields_ = [
        ("version", ctypes.c_uint32),
        ("secid", ctypes.c_uint32),
        ("obd_name", ctypes.c_void_p),
        ("lustre_svc", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("send_token_size", ctypes.c_uint64),
        ("send_token", ctypes.c_void_p),
        ("reply_buf_size", ctypes.c_uint64),
        ("reply_buf", ctypes.c_void_p),
        ("status", ctypes.c_void_p),
    ]


class Channel:
    """One record for init_channel with its buffers; a test may spoil any field."""

    def __init__(self, token: bytes, obd_name: bytes = b"lustre-MDT0000-mdc-test") -> None:
        self.obd_name = ctypes.create_string_buffer(obd_name)
        self.token = ctypes.create_string_buffer(token, len(token))
        self.reply = ctypes.create_string_buffer(REPLY_SIZE)
        self.status = ctypes.c_int64(-1)
        self.record = ChannelRecord(
            version=2,
            secid=42,
            obd_name=ctypes.addressof(self.obd_name),
            lustre_svc=1,
            uid=1000,
            gid=1001,
            send_token_size=len(token),
            send_token=ctypes.addressof(self.token),
            reply_buf_size=REPLY_SIZE,
            reply_buf=ctypes.addressof(self.reply),
            status=ctypes.addressof(self.status),
        )

    def write(self) -> tuple[int, bytes]:
        """Do the round trip; return the status and the whole reply buffer."""
        device = os.open(INIT_CHANNEL, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(device, bytes(self.record))
        finally:
            os.close(device)
        assert written == ctypes.sizeof(self.record)
        return self.status.value, self.reply.raw


@dataclass(frozen=True)
class TokenRequest:
    """What an acceptor gets: the record's fields and the token."""

    HEAD = struct.Struct("=QIIII64sII")

    id: int
    secid: int
    lustre_svc: int
    uid: int
    gid: int
    obd_name: bytes
    token: bytes

    @classmethod
    def parse(cls, data: bytes) -> TokenRequest:
        """Read one record of the acceptor's device."""
        number, secid, service, uid, gid, name, size, _ = cls.HEAD.unpack_from(data)
        token = data[cls.HEAD.size :]
        assert len(token) == size
        return cls(number, secid, service, uid, gid, name.rstrip(b"\0"), token)


def answer_record(number: int, status: int, reply: bytes = b"") -> bytes:
    """Return what an acceptor writes."""
    return struct.pack("=Qq", number, status) + reply


class Acceptor:
    """A thread that answers tokens while the `with` block lasts.

    `answer` returns a negative errno for the status, or the reply's bytes. It is called
    in a thread for each token, so one that waits holds up no other.
    """

    def __init__(self, answer: Callable[[TokenRequest], int | bytes]) -> None:
        self._answering: list[threading.Thread] = []
        self.requests: list[TokenRequest] = []
        self._answer = answer
        self._device = os.open(ACCEPTOR, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for thread in self._answering:
            thread.join()
        os.close(self._device)
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            ready = select.select([self._device, self._wake], [], [])[0]
            if self._wake in ready:
                return
            try:
                data = os.read(self._device, TokenRequest.HEAD.size + 65536)
            except BlockingIOError:
                continue
            request = TokenRequest.parse(data)
            self.requests.append(request)
            self._answering.append(threading.Thread(target=self._respond, args=(request,)))
            self._answering[-1].start()

    def _respond(self, request: TokenRequest) -> None:
        result = self._answer(request)
        status, reply = (result, b"") if isinstance(result, int) else (0, result)
        # Unless the writer has given up meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.write(self._device, answer_record(request.id, status, reply))

"""Lustre's own way: one write to init_channel is one round trip (PROTOCOL 6).

Two halves, as only root may write there while everything of a reply is read by the
user: :class:`LustreChannel` in the worker parses, :class:`Carrier` in the monitor
writes and copies bytes.  Between them is :mod:`lgss_keyring.monitor.privsep`.

The write can wait in the kernel for as long as Lustre pleases, and the monitor must
still notice that the worker has died or that time is up.  So it is made in a thread of
its own.  Weighed against a third process: that would have to carry the reply back
through one more socket, and a fork of the monitor costs 2 ms; the thread starts in
0.05.  When the monitor leaves by _exit the kernel ends the thread's wait, too.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import struct

from lgss_keyring.formats.errors import ChannelError
from lgss_keyring.worker.channel import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config

    Carry = Callable[[bytes], tuple[int, bytes]]
    """Takes a token; gives the RPC's status (0 or a negative errno) and the reply
    buffer.  Raises ChannelError for a failed write."""

ROOTS = (
    "/sys/fs/lustre",
    "/sys/kernel/debug/lustre",
    "/proc/fs/lustre",
    "/proc/lustre",
    "/proc/sys/lustre",
)
"""Where Lustre's parameters are, by version; the first that has one is taken."""
INIT_CHANNEL = "sptlrpc/gss/init_channel"
DEBUG_LEVEL = "sptlrpc/gss/lgss_keyring/debug_level"

VERSION = 2
REPLY_SIZE = 8192
HANDLE_LIMIT = 1024
MECHANISM_NUMBERS = {"krb5": 0, "gssnull": 1, "sk": 2}
# u32 version, secid; char *; u32 service, uid, gid; (padding); u64, char *, u64, char *, s64 *
_RECORD = struct.Struct("=IIQIIIxxxxQQQQQ")
assert _RECORD.size == 72


def find(name: str, config: Config) -> str | None:
    """The path of the parameter ``name``, or None on a machine that has none."""
    roots = (config.lustre.parameters,) if config.lustre.parameters else ROOTS
    for root in roots:
        path = f"{root}/{name}"
        if os.path.exists(path):
            return path
    return None


def debug_level(config: Config) -> int | None:
    """Lustre's parameter debug_level, 0 to 4, or None where there is none."""
    path = find(DEBUG_LEVEL, config)
    try:
        if path is None:
            return None
        descriptor = os.open(path, os.O_RDONLY)
        try:
            text = os.read(descriptor, 16).strip()
        finally:
            os.close(descriptor)
        return min(max(int(text), 0), 4)
    except (OSError, ValueError):
        return None


def open_channel(request: UpcallRequest, config: Config, carry: Carry) -> LustreChannel:
    """The channel for ``request``; ``carry`` is the way to the monitor."""
    return LustreChannel(request.obd_name, carry)


class LustreChannel:
    """See :class:`lgss_keyring.worker.channel.Channel`; the structure has no room for a handle:
    the kernel itself knows which context a second token would belong to."""

    once = False

    def __init__(self, obd_name: str, carry: Carry) -> None:
        self._peer = obd_name
        self._carry = carry

    def connect(self) -> None:
        """Nothing to do: the kernel is connected."""

    def close(self) -> None:
        """Nothing to give up."""

    def exchange(self, token: bytes, handle: bytes) -> Reply:
        """Send ``token``; see :class:`lgss_keyring.worker.channel.Channel`."""
        status, reply = self._carry(token)
        if status == 0:
            return parse_reply(reply)
        number = -status if -4096 < status < 0 else errno.EPROTO
        if number == errno.ETIMEDOUT:
            raise ChannelError(
                f"the server of {self._peer} did not answer",
                errno=number,
                kind="acceptor-silent",
                hint="check that the GSS daemon (lsvcgssd) runs on that server",
            )
        raise ChannelError(
            f"the RPC to {self._peer} failed: {os.strerror(number)}",
            errno=number,
            kind="refused-by-server" if number == errno.EACCES else "rpc-failed",
            hint="see the logs of that server and of its GSS daemon (lsvcgssd)",
        )


def parse_reply(data: bytes) -> Reply:
    """Decode PROTOCOL 6's reply buffer; raises ChannelError (EPROTO)."""
    try:
        zero, major, minor, window, length = struct.unpack_from("=IIIII", data)
        if zero:
            raise ValueError(f"it begins with {zero} instead of 0")
        if length > HANDLE_LIMIT:
            raise ValueError(f"a handle of {length} bytes")
        handle = data[20 : 20 + length]
        at = 20 + (length + 3 & ~3)
        (length,) = struct.unpack_from("=I", data, at)
        token = data[at + 4 : at + 4 + length]
        # The padding counts: a length that leaves no room for it is no kernel's.
        if at + 4 + (length + 3 & ~3) > len(data):
            raise ValueError(f"a token of {length} bytes in a buffer of {len(data)}")
    except (struct.error, ValueError) as error:
        raise ChannelError(
            f"a malformed reply through init_channel: {error}",
            errno=errno.EPROTO,
            kind="malformed-reply",
            hint="client and server may be of versions that do not fit; please report it",
        ) from error
    return Reply(handle, major, minor, window, token)


class Carrier:
    """The monitor's half: writes tokens of one upcall to init_channel, one at a time.

    What is written names this upcall's secid, target, uid, and the gid that the worker
    told before it became the user: nothing else that a worker says gets into it.
    ``timeout`` in seconds is for whoever waits.  Raises ChannelError where the
    parameter does not exist.
    """

    def __init__(self, request: UpcallRequest, config: Config) -> None:
        path = find(INIT_CHANNEL, config)
        if path is None:
            raise ChannelError(
                f"there is no Lustre parameter {INIT_CHANNEL} on this machine",
                errno=errno.ENODEV,
                kind="no-lustre",
                hint="load Lustre's module ptlrpc_gss; [lustre] parameters names another directory",
            )
        self._path = path
        self._secid = request.secid & 0xFFFFFFFF
        self._uid = request.uid
        self._service = request.lustre_service | MECHANISM_NUMBERS[request.mechanism] << 16
        self._obd_name = ctypes.create_string_buffer(request.obd_name.encode("ascii"))
        self.timeout = float(config.lustre.reply_timeout)
        self._result: tuple[int, bytes] | OSError | None = None

    def start(self, gid: int, token: bytes) -> int:
        """Write ``token`` in a thread.  Returns a descriptor, the caller's, that becomes
        readable at the end of the write."""
        readable, writable = os.pipe()
        self._result = None
        _thread.start_new_thread(self._write, (gid, token, writable))
        return readable

    def _write(self, gid: int, token: bytes, done: int) -> None:
        out = ctypes.create_string_buffer(token, len(token))
        reply = ctypes.create_string_buffer(REPLY_SIZE)
        status = ctypes.c_int64(-errno.EIO)
        record = _RECORD.pack(
            VERSION,
            self._secid,
            ctypes.addressof(self._obd_name),
            self._service,
            self._uid,
            gid,
            len(token),
            ctypes.addressof(out),
            REPLY_SIZE,
            ctypes.addressof(reply),
            ctypes.addressof(status),
        )
        try:
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                written = os.write(descriptor, record)
            finally:
                os.close(descriptor)
            if written != len(record):
                raise OSError(errno.EIO, f"only {written} of {len(record)} bytes were taken")
            self._result = (status.value, reply.raw if status.value == 0 else b"")
        except OSError as error:
            self._result = error
        except BaseException as error:
            self._result = OSError(errno.EIO, f"{type(error).__name__}: {error}")
        finally:
            os.close(done)

    def result(self) -> tuple[int, bytes]:
        """Status and reply buffer of the last token; raises ChannelError if the write
        itself has failed."""
        assert self._result is not None
        if isinstance(self._result, OSError):
            raise ChannelError(
                f"cannot write to {self._path}: {self._result.strerror}",
                errno=self._result.errno or errno.EIO,
                kind="init-channel",
                hint="the kernel's log may say why; is the target still mounted?",
            ) from self._result
        return self._result

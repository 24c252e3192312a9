"""Writing to Lustre's init_channel, as root (docs/protocol.md 6), and Lustre's other parameters.

The write can wait in the kernel for as long as Lustre pleases, and the monitor must
still notice that the worker has died or that time is up.  So a thread of its own makes it.  (A
third process would have to send the reply back through one more socket, and a fork of the
monitor takes 2 ms; the thread starts in 0.05 ms.)  When the monitor leaves by _exit the kernel
ends the thread's wait, too.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import struct

from lgss_keyring.formats.errors import ChannelError, Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config

ROOTS = (
    "/sys/fs/lustre",
    "/sys/kernel/debug/lustre",
    "/proc/fs/lustre",
    "/proc/lustre",
    "/proc/sys/lustre",
)
"""The directories of Lustre's parameters, which differ by version; the first that has one is taken."""
INIT_CHANNEL = "sptlrpc/gss/init_channel"
DEBUG_LEVEL = "sptlrpc/gss/lgss_keyring/debug_level"

VERSION = 2
REPLY_SIZE = 8192
OBD_NAME_BYTES = 63
"""How many bytes of the obd name the kernel keeps."""
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


def path(config: Config) -> str:
    """The path of init_channel; raises ChannelError if the parameter does not exist."""
    found = find(INIT_CHANNEL, config)
    if found is None:
        raise ChannelError(
            f"there is no Lustre parameter {INIT_CHANNEL} on this machine",
            errno=errno.ENODEV,
            kind=Kind.NO_LUSTRE,
            hint="load Lustre's module ptlrpc_gss; [lustre] parameters names another directory",
        )
    return found


def write_error(path: str, number: int, text: str = "") -> ChannelError:
    """The error of a write to init_channel at ``path`` that failed with errno ``number``; ``text`` says more
    than that errno, if it is not empty."""
    if number == errno.EINVAL:
        return ChannelError(
            "Lustre has no such target, or it is being set up or unmounted (init_channel: Invalid argument)",
            errno=errno.EINVAL,
            kind=Kind.TARGET_GONE,
            hint="nothing to repair if it was just unmounted; else the kernel's log may say why",
        )
    return ChannelError(
        f"cannot write to {path}: {text or os.strerror(number)}",
        errno=number or errno.EIO,
        kind=Kind.INIT_CHANNEL,
        hint="the kernel's log may say why; is the target still mounted?",
    )


class InitChannelWriter:
    """Writes the tokens of one upcall to init_channel, one at a time.

    The record has this upcall's secid, target and uid, and the gid that the worker sent before it
    became the user.  Apart from the token nothing in it comes from the worker.
    ``timeout``: the seconds that a write may take; the caller bounds it.  Raises ChannelError if
    the parameter does not exist.
    """

    def __init__(self, request: UpcallRequest, config: Config) -> None:
        self._path = path(config)
        self._secid = request.secid & 0xFFFFFFFF
        self._uid = request.uid
        self._service = request.lustre_service | MECHANISM_NUMBERS[request.mechanism] << 16
        self._obd_name = ctypes.create_string_buffer(request.obd_name.encode("ascii")[:OBD_NAME_BYTES])
        self.timeout = float(config.lustre.reply_timeout)
        self._result: tuple[int, bytes] | OSError | None = None

    def start(self, gid: int, token: bytes) -> int:
        """Write ``token`` in a thread.  Returns a descriptor that becomes readable at the end of the
        write; the caller closes it."""
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
            number, text = self._result.errno or errno.EIO, self._result.strerror or ""
            raise write_error(self._path, number, text) from self._result
        return self._result

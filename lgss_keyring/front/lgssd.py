"""An upcall that lgssd serves: the front's word, and the part of the process that holds the key.

:mod:`.lgssd_messages` says who sends what, and when.  The front loads this only if there is a
socket, while a caller waits, so it imports little.  The socket is the same one in the front and in
its child; the front reads the word, and the child reads on when the key is instantiated.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import sys
import time

from lgss_keyring.front import keyctl, lgssd_messages
from lgss_keyring.front.arguments import LONGEST_TIMEOUT
from lgss_keyring.front.lgssd_messages import MESSAGE_LIMIT, SILENCE, MessageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.front.arguments import Call

    WatchWrite = Callable[[int], None]
    """Lets the witness watch one write to init_channel; takes the seconds that it may take, 0
    when it has ended."""

WORD_MS = 50
"""How long the caller of a user's request waits for the word, unless the file beside the socket
says otherwise."""
WORD_FILE = ".word"
"""Behind the socket's path: the file in which lgssd leaves `[upcall] word_ms`."""
MARGIN = 1.0
"""Seconds before the front's alarm at which it waits for no word any more."""
LATE = 0.5
"""Seconds before --timeout at which the child of a ``user`` key gives lgssd up.  lgssd should have
answered half a second earlier."""
CREDENTIALS_SIZE = 12
"""Bytes of struct ucred: s32 pid, u32 uid, u32 gid."""

GONE = frozenset({errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.EACCES, errno.ENOKEY})
"""As in :mod:`lgss_keyring.system.keys`, which this folder must not import; a test compares the two."""
RECORD_VERSION = 2
OBD_NAME_BYTES = 63
"""How many bytes of the obd name the kernel keeps."""


class Connection:
    """The connection to lgssd, for one upcall; :meth:`connect` makes it."""

    def __init__(self, socket: _socket.socket, call: Call, started: float) -> None:
        """``started``: when the front began, of time.monotonic()."""
        self._socket = socket
        self._call = call
        self._started = started

    @classmethod
    def connect(cls, call: Call, started: float) -> Connection | None:
        """A connection over which the request has been sent; None if lgssd cannot take it."""
        options = call.options
        realm, config = options.get("realm", ""), options.get("config", "")
        elapsed = int((time.monotonic() - started) * 1000)
        message = lgssd_messages.pack_upcall(elapsed, call.timeout, realm, config, call.arguments)
        if message is None:
            return None
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            socket.setblocking(False)
            socket.connect(call.lgssd)
            peer = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, CREDENTIALS_SIZE)
            if peer[4:8] == bytes(4):
                socket.send(message, _socket.MSG_NOSIGNAL)
                return cls(socket, call, started)
        except (OSError, ValueError):
            pass  # it has ended, or is full; or a NUL in the path
        socket.close()
        return None

    def close(self) -> None:
        """Close it, in a process that says and hears nothing over it."""
        self._socket.close()

    def give_up(self) -> None:
        """Let neither this process nor its child hear anything over it any more."""
        try:
            self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # the other end has closed it
        self._socket.close()

    def word(self) -> tuple[bool, int, int]:
        """The word: whether lgssd serves the upcall, and the errno and seconds of a rejection (0: the
        key is to be instantiated).  For a user True also if there is no word in time."""
        now = time.monotonic()
        end = self._started + self._call.timeout - MARGIN
        is_user = not self._call.is_machine
        if is_user:
            end = min(end, now + _word_ms(self._call.lgssd) / 1000)
        try:
            while True:
                left = end - time.monotonic()
                message = self._hear(left if is_user else min(left, SILENCE), _socket.MSG_PEEK)
                if message[:1] in (b"A", b"T"):
                    answer = lgssd_messages.Answer(message) if message[:1] == b"A" else None
                    if answer is None or not answer.errno:
                        return True, 0, 0  # it stays in the socket, for the child
                    self._hear(left)
                    return True, answer.errno, answer.life
                self._hear(left)
                if message == lgssd_messages.GO:
                    return True, 0, 0
                if message != lgssd_messages.AT_WORK:
                    return False, 0, 0
        except TimeoutError:
            return is_user, 0, 0
        except (OSError, MessageError):
            return False, 0, 0

    def done(self, number: int) -> None:
        """Tell lgssd that the key has its answer (0), or the errno with which the kernel has refused it."""
        try:
            self._socket.send(lgssd_messages.pack_done(number), _socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it has ended

    def serve(self, key: int, watch_write: WatchWrite) -> bool:
        """In the child: do for ``key``, which is instantiated, what lgssd says.

        Returns False if it has not answered the key: do it yourself.
        """
        end = self._started + LONGEST_TIMEOUT
        if self._call.key_type == "user":
            end = self._started + self._call.timeout - LATE
        try:
            while True:
                message = self._hear(min(SILENCE, end - time.monotonic()))
                if message[:1] == b"T":
                    token = lgssd_messages.Token(message)
                    watch_write(min(token.limit, LONGEST_TIMEOUT))
                    reply = write(token)
                    watch_write(0)
                    self._socket.send(reply, _socket.MSG_NOSIGNAL)
                elif message[:1] == b"A":
                    self.done(give(key, self._call.key_type, lgssd_messages.Answer(message)))
                    return True
                elif message not in (lgssd_messages.AT_WORK, lgssd_messages.GO):
                    return False
        except (OSError, MessageError):
            return False

    def _hear(self, seconds: float, flags: int = 0) -> bytes:
        """The next message, empty at the end of the connection; raises TimeoutError, OSError, or
        MessageError for one that is too long."""
        if seconds <= 0:
            raise TimeoutError
        self._socket.settimeout(seconds)
        message = self._socket.recv(MESSAGE_LIMIT + 1, flags)
        if len(message) > MESSAGE_LIMIT:
            raise MessageError
        return message


def _word_ms(path: str) -> int:
    try:
        descriptor = os.open(f"{path}{WORD_FILE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return min(int(os.read(descriptor, 8)), LONGEST_TIMEOUT * 1000)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return WORD_MS


def give(key: int, key_type: str, given: lgssd_messages.Answer) -> int:
    """Update ``key`` with the answer ``given``; returns 0, or the errno with which the kernel has refused it.

    As :func:`lgss_keyring.monitor.key_answer.give`: an answer for which there is no room is replaced
    by the twelve bytes of a failure, and a key that takes neither is invalidated.
    """
    from lgss_keyring.front import answer

    until = time.monotonic() + min(given.patience, LONGEST_TIMEOUT)
    # A timeout of 0 would be none at all.
    number = _update(key, key_type, given.payload, given.life or answer.FAILURE_LIFE, until)
    has_no_room = number and number not in GONE and number != errno.EAGAIN
    if has_no_room and _update(key, key_type, answer.failure(number), answer.FAILURE_LIFE, until):
        try:
            keyctl.invalidate(key)
        except OSError:
            pass  # it is gone already
    return number


def _update(key: int, key_type: str, payload: bytes, life: int, until: float) -> int:
    from lgss_keyring.front import answer

    try:
        answer.update(key, payload, until)
        if key_type == "user":
            keyctl.set_timeout(key, life)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def write(token: lgssd_messages.Token) -> bytes:
    """Write ``token`` to init_channel (docs/protocol.md 6); returns the R message about it.

    The write waits for as long as Lustre pleases.
    """
    name = ctypes.create_string_buffer(token.obd_name[:OBD_NAME_BYTES])
    out = ctypes.create_string_buffer(token.token, len(token.token))
    reply = ctypes.create_string_buffer(lgssd_messages.REPLY_LIMIT)
    status = ctypes.c_int64(-errno.EIO)
    # u32 version, secid; char *; u32 service, uid, gid; (padding); u64, char *, u64, char *, s64 *
    fields = (
        (4, RECORD_VERSION),
        (4, token.secid),
        (8, ctypes.addressof(name)),
        (4, token.service),
        (4, token.uid),
        (4, token.gid),
        (4, 0),
        (8, len(out)),
        (8, ctypes.addressof(out)),
        (8, len(reply)),
        (8, ctypes.addressof(reply)),
        (8, ctypes.addressof(status)),
    )
    record = b"".join(value.to_bytes(size, sys.byteorder) for size, value in fields)
    try:
        descriptor = os.open(token.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            written = os.write(descriptor, record)
        finally:
            os.close(descriptor)
    except OSError as error:
        return lgssd_messages.pack_reply(0, error.errno or errno.EIO, b"")
    if written != len(record):
        return lgssd_messages.pack_reply(0, errno.EIO, b"")
    return lgssd_messages.pack_reply(status.value, 0, reply.raw if status.value == 0 else b"")

"""Sockets that make the process that exits with one wait, so that it stays as it is then.

The kernel takes an exiting process's namespaces away before it closes the last of its files for
good.  Lustre waits there for a context.  Here a socket waits: in its queue is an open file of a FUSE file
system (fuse(4), its messages by linux/fuse.h) with a write-back cache, and the last close
of such a file writes what another process has changed.  The server does not answer the write.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, WRITE, RELEASE, INIT, DESTROY = 1, 2, 3, 4, 14, 16, 18, 26, 38
INTERRUPT, BATCH_FORGET = 36, 42
WITHOUT_ANSWER = (FORGET, INTERRUPT, BATCH_FORGET)
WRITEBACK_CACHE = 1 << 16
ENOSYS = 38
_HEAD = struct.Struct("=IIQQIIII")
_ANSWER = struct.Struct("=IiQ")
_libc = ctypes.CDLL(None, use_errno=True)


def _attributes(inode: int) -> bytes:
    mode = 0o40755 if inode == 1 else 0o100666
    return struct.pack("=6Q3I7I", inode, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 512, 0)


def _serve(device: int, go_on: int) -> None:
    """Answer the kernel's requests until it unmounts; WRITE once ``go_on`` is closed."""
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError:
            return  # unmounted
        _, opcode, unique, inode, *_ = _HEAD.unpack_from(request)
        number, body = 0, b""
        if opcode == INIT:
            body = struct.pack("=4I2H2I2H8I", 7, 31, 0, WRITEBACK_CACHE, 9, 9, 4096, 1, 1, 0, *[0] * 8)
        elif opcode == LOOKUP:
            body = struct.pack("=4Q2I", 2, 0, 60, 60, 0, 0) + _attributes(2)
        elif opcode in (GETATTR, SETATTR):
            body = struct.pack("=Q2I", 60, 0, 0) + _attributes(inode)
        elif opcode == OPEN:
            body = struct.pack("=Q2I", 1, 0, 0)
        elif opcode == WRITE:
            os.read(go_on, 1)
            body = struct.pack("=2I", struct.unpack_from("=I", request, _HEAD.size + 16)[0], 0)
        elif opcode not in (RELEASE, DESTROY):
            number = -ENOSYS
        if opcode not in WITHOUT_ANSWER:
            os.write(device, _ANSWER.pack(_ANSWER.size + len(body), number, unique) + body)


class SlowClose:
    """Makes such sockets; a context manager, root's, at whose end the closes go on."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lgss-slow-")
        self._mount = self._folder.name.encode()
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"lgss-slow", self._mount, b"fuse", ctypes.c_ulong(0), options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        go_on, self._go_on = os.pipe()
        self._server = os.fork()
        if self._server == 0:
            try:
                os.close(self._go_on)
                _serve(device, go_on)
            finally:
                os._exit(0)
        os.close(device)
        os.close(go_on)
        self._writer = -1

    def holder(self) -> socket.socket:
        """A socket: the process that closes it last, by exiting, waits in that."""
        path = Path(self._folder.name) / "file"
        ours, theirs = socket.socketpair()
        file = os.open(path, os.O_RDWR)
        socket.send_fds(ours, [b"x"], [file])
        os.close(file)  # nothing is to be written yet
        ours.close()
        return theirs

    def arm(self) -> None:
        """Change the file, after the last :meth:`holder`: from now on the sockets' closes wait."""
        self._writer = os.open(Path(self._folder.name) / "file", os.O_RDWR)
        os.write(self._writer, b"x")

    def go_on(self) -> None:
        """Let all closes go on, those to come as well."""
        if self._go_on >= 0:
            os.close(self._go_on)
            self._go_on = -1

    def __enter__(self) -> SlowClose:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        if self._writer >= 0:
            os.close(self._writer)
        subprocess.run(["umount", self._folder.name], check=True)
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)
        self._folder.cleanup()

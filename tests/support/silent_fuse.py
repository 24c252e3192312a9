"""A FUSE file system (fuse(4)) as users can mount one by fusermount(1), whose server answers nothing."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from pathlib import Path

INIT = 26
_HEAD = struct.Struct("=IIQQIIII")
_libc = ctypes.CDLL(None, use_errno=True)
MNT_FORCE, MNT_DETACH = 1, 2


class SilentFuse:
    """One that is mounted on the folder ``where``, which is made for it; a context manager, at
    whose end all who wait in it go on, with an error.  ``for_all``: others than ``uid`` see it
    (allow_other)."""

    def __init__(self, where: Path, uid: int, for_all: bool = True) -> None:
        self._where = where
        where.mkdir()
        os.chown(where, uid, uid)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id={uid},group_id={uid}"
        options += ",allow_other" if for_all else ""
        if _libc.mount(b"lgss-silent", str(where).encode(), b"fuse", ctypes.c_ulong(0), options.encode()):
            number = ctypes.get_errno()
            os.close(self._device)
            where.rmdir()
            raise OSError(number, "mount")
        self.asked = 0
        """How many requests have come that have no answer."""
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while all(descriptor != self._end for descriptor, _ in poll.poll()):
            try:
                request = os.read(self._device, 1 << 20)
            except OSError:
                continue  # it was taken back
            _, opcode, unique, *_ = _HEAD.unpack_from(request)
            if opcode == INIT:
                body = struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 9, 9, 4096, 1, 1, 0, *[0] * 8)
                os.write(self._device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
            else:
                self.asked += 1

    def __enter__(self) -> SilentFuse:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._ended, b"x")
        self._thread.join()
        # The first fails all requests; it cannot unmount while somebody is in there.
        for flag in (MNT_FORCE, MNT_DETACH):
            _libc.umount2(str(self._where).encode(), flag)
        os.close(self._device)
        os.close(self._end)
        os.close(self._ended)
        self._where.rmdir()

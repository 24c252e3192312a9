"""lgssd's sockets: what is replaced at their paths, and who may connect."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from lgss_keyring.daemon import listener

KINDS = (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [listener.ROOT_ALONE, listener.EVERYBODY])
def test_a_socket_listens_with_its_mode(tmp_path: Path, mode: int, kind: int) -> None:
    path = tmp_path / "socket"
    with listener.listen(str(path), 1, mode, kind) as listening, socket.socket(socket.AF_UNIX, kind) as other:
        assert stat.S_IMODE(path.stat().st_mode) == mode
        other.connect(str(path))
        connection, _ = listening.accept()
        with connection:
            assert listener.peer_of(connection) == (os.getpid(), os.geteuid(), os.getegid())
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_that_nobody_listens_at_is_replaced(tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "socket")
    listener.listen(path, 1, kind=kind).close()
    with listener.listen(path, 1, kind=kind), socket.socket(socket.AF_UNIX, kind) as other:
        other.connect(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_in_use_is_left_alone(tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "socket")
    with listener.listen(path, 1, kind=kind):
        with pytest.raises(OSError) as caught:
            listener.listen(path, 1, kind=kind)
        assert caught.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX, kind) as other:
            other.connect(path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "socket"
    path.write_text("somebody's")
    with pytest.raises(OSError) as caught:
        listener.listen(str(path), 1, kind=kind)
    assert caught.value.errno == errno.EADDRINUSE and path.read_text() == "somebody's"

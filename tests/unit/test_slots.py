"""Slots, the requests that are handed over, and the pace of fronts; without root and keys."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lgss_keyring.front import arguments, pace
from lgss_keyring.front.arguments import Call
from lgss_keyring.monitor import hand_over, slots

UPCALL = ["create", "5", "user", "lgss:x", "1:krb5:7:7::i:0:0x1:obd:0x1:0", "7", "7", "0", "0", "0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(arguments, "NOTES", str(tmp_path / "lgss"))
    monkeypatch.setattr(slots, "FOLDER", str(tmp_path / "lgss" / "slots"))
    return tmp_path / "lgss" / "slots"


def test_so_many_slots_and_no_more(folder: Path) -> None:
    taken = [slots.take("7", 3) for _ in range(4)]
    assert [number for number, _ in taken] == [0, 1, 2, -1]
    assert slots.take("8", 3)[0] == 0
    os.close(taken[1][1])
    assert slots.take("7", 3)[0] == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_slot_is_free_when_its_last_process_ends(folder: Path) -> None:
    _, slot = slots.take("7", 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    os.close(slot)
    assert slots.take("7", 1) == (-1, -1)
    os.write(writer, b"x")
    os.waitpid(child, 0)
    assert slots.take("7", 1)[0] == 0


def test_slots_need_a_folder_of_roots_alone(folder: Path) -> None:
    folder.parent.mkdir()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(NotADirectoryError):
        slots.take("7", 1)


def test_link_is_no_folder(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(mode=0o700)
    folder.symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        slots.prepare_folder()


def test_old_lock_files_are_swept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LOCK_FILES", 10)
    held = [slots.take(str(uid), 1)[1] for uid in range(5)]
    for uid in range(100, 110):
        os.close(slots.take(str(uid), 1)[1])
    left = os.listdir(folder)
    assert len(left) <= 12
    assert {f"{uid}.0" for uid in range(5)} <= set(left)
    assert all(slots.take(str(uid), 1) == (-1, -1) for uid in range(5)), held


def test_request_comes_over_as_it_was() -> None:
    given = ["-R", "R.TEST", "--timeout", "9"]
    call = Call([*given, "--instantiated", "5:1250", *UPCALL])
    message = hand_over.pack(hand_over.Request(5, 6, 1.25, 77, call))
    request = hand_over.unpack(message)
    assert (request.key, request.keyring, request.started, request.forked) == (5, 6, 1.25, 77)
    expected = Call([*given, *UPCALL])
    assert (request.call.options, request.call.arguments) == (expected.options, expected.arguments)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"5\x006\x001.0\x007",
        "\0".join(["6", "6", "1.0", "7", *UPCALL]).encode(),
        "\0".join(["5", "6", "1.0", "7", *UPCALL[:-1]]).encode(),
        "\0".join(["5", "6", "1.0", "7", *UPCALL]).replace("7:7::", "7:7:r:").encode(),
    ],
)
def test_what_is_no_users_request_is_not_taken(message: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        hand_over.unpack(message)


def test_a_request_has_at_most_32_kib() -> None:
    words = ["5", "6", "1.0", "7", "--config", "/", *UPCALL]
    words[5] += "x" * (32768 - len("\0".join(words)))
    assert hand_over.unpack("\0".join(words).encode()).call.options == {"config": words[5]}
    words[5] += "x"
    with pytest.raises(ValueError, match="too long"):
        hand_over.unpack("\0".join(words).encode())


def test_a_turn_ends_before_the_key(folder: Path) -> None:
    assert 100 < hand_over.turn_ends(Call(["--timeout", "4", *UPCALL]), 100.0) < 103


def test_fronts_go_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    path = str(tmp_path / "pace")
    for _ in range(3):
        pace.wait(path)
    assert slept[0] < slept[1] < slept[2] <= 2 * pace.INTERVAL
    (tmp_path / "pace").write_text("99999999999999")
    pace.wait(path)
    assert slept[3] == pace.LONGEST_WAIT
    (tmp_path / "pace").write_bytes(b"\xffgarbage")
    pace.wait(path)
    assert slept[4] == 0
    pace.wait(str(tmp_path / "none" / "pace"))

"""Log lines: where they go, and that no value can forge one."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.system.log import Log, printable

NONE = "/nonexistent/log"


def receiver(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    server.settimeout(2)
    return server


def test_journal_gets_fields_and_syslog_nothing(tmp_path: Path) -> None:
    with receiver(tmp_path / "journal") as journal, receiver(tmp_path / "syslog") as syslog:
        log = Log("info", "", str(tmp_path / "journal"), str(tmp_path / "syslog"))
        log.bind(key=42, uid=1000)
        log.event("warning", "key 42: no ticket", error="no-ticket")
        lines = journal.recv(4096).decode().split("\n")
        syslog.setblocking(False)
        with pytest.raises(BlockingIOError):
            syslog.recv(1)
    assert {"MESSAGE=key 42: no ticket", "PRIORITY=4", "SYSLOG_IDENTIFIER=lgss_keyring"} <= set(lines)
    assert {"LGSS_KEY=42", "LGSS_UID=1000", "LGSS_ERROR=no-ticket"} <= set(lines)


def test_syslog_is_used_where_there_is_no_journal(tmp_path: Path) -> None:
    with receiver(tmp_path / "syslog") as syslog:
        Log("info", "", str(tmp_path / "none"), str(tmp_path / "syslog")).event("error", "broken")
        line = syslog.recv(4096).decode()
    assert line.startswith(f"<{10 * 8 + 3}>") and line.endswith(f"lgss_keyring[{os.getpid()}]: broken")


def test_the_kernels_log_is_used_where_there_is_neither(tmp_path: Path) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.touch()
    log = Log("debug", "", NONE, NONE, kmsg=str(kmsg))
    log.bind(requestor=0)
    log.event("debug", "a step")  # would push out what the kernel has said
    log.event("warning", "uid 5 | LGSS_REQUESTOR=7 " + "x" * 1500, error="no-ticket")
    line = kmsg.read_text()
    assert line.startswith(f"<{10 * 8 + 4}>lgss_keyring[{os.getpid()}]: uid 5 \\x7c LGSS_REQUESTOR=7 xxx")
    assert line.endswith("... | LGSS_REQUESTOR=0 LGSS_ERROR=no-ticket\n") and line.count("\n") == 1
    assert len(line) < 976  # /dev/kmsg refuses records of more than 1024 bytes with the kernel's own prefix
    with receiver(tmp_path / "syslog") as syslog:
        Log("info", "", NONE, str(tmp_path / "syslog"), kmsg=str(kmsg)).event("error", "broken")
        assert syslog.recv(4096).endswith(b"broken")
    assert kmsg.read_text() == line


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/kmsg"), reason="needs root and /dev/kmsg")
def test_the_kernel_takes_the_longest_line(tmp_path: Path) -> None:
    with open("/dev/kmsg", "rb", buffering=0) as kernel:
        os.set_blocking(kernel.fileno(), False)
        os.lseek(kernel.fileno(), 0, os.SEEK_END)
        log = Log("info", "", NONE, NONE)
        log.bind(requestor=0)
        log.event("info", f"{tmp_path} is tested " + "x" * 3000, error="y" * 3000)
        record = kernel.read(8192).decode()
    assert f"{tmp_path} is tested xxx" in record and "LGSS_REQUESTOR=0 LGSS_ERROR=yyy" in record


@pytest.mark.parametrize("kind", ["folder", "link", "nowhere"])
def test_a_log_file_that_cannot_be_written_is_reported_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "none" / "log"
    with receiver(tmp_path / "journal") as journal:
        log = Log("info", str(path), str(tmp_path / "journal"), NONE, kmsg=NONE)
        log.bind(requestor=0)
        for _ in range(3):
            log.event("info", "hello")
        lines = [journal.recv(4096).decode() for _ in range(4)]
        journal.setblocking(False)
        with pytest.raises(BlockingIOError):
            journal.recv(1)
    assert sum("MESSAGE=hello\n" in line for line in lines) == 3
    (warning,) = [
        line for line in lines if f"MESSAGE=cannot write the log file {path} ([log] file): " in line
    ]
    assert "PRIORITY=4\n" in warning and "LGSS_REQUESTOR=0\n" in warning


def waiting(server: socket.socket) -> list[str]:
    """The lines that ``server`` has got, taken away."""
    server.setblocking(False)
    lines = []
    with contextlib.suppress(BlockingIOError):
        while True:
            lines.append(server.recv(4096).decode())
    return lines


def test_a_full_journal_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "kmsg").touch()
    with receiver(tmp_path / "journal") as journal, receiver(tmp_path / "syslog") as syslog:
        journal_path, syslog_path, kmsg = (str(tmp_path / name) for name in ("journal", "syslog", "kmsg"))
        log = Log("info", "", journal_path, syslog_path, kmsg=kmsg)

        def write() -> None:
            for number in range(2000):
                log.event("error", f"{number} {'x' * 1000}")

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(30)
        assert not writer.is_alive()
        # The first lines are kept, and the rest is lost rather than written elsewhere.
        kept = waiting(journal)
        assert 0 < len(kept) < 2000
        assert all(line.startswith(f"MESSAGE={number} ") for number, line in enumerate(kept))
        assert waiting(syslog) == [] and (tmp_path / "kmsg").read_text() == ""
        log.event("error", "there is room again")
        (line,) = waiting(journal)
        assert line.startswith("MESSAGE=there is room again\n")


def test_patience_with_a_journal_that_stays_full_has_an_end(tmp_path: Path) -> None:
    with receiver(tmp_path / "journal") as journal, receiver(tmp_path / "syslog") as syslog:
        log = Log("info", "", str(tmp_path / "journal"), str(tmp_path / "syslog"), kmsg=NONE)
        for _ in range(2000):
            log.event("error", "x")
        log.patience = 0.05
        log.event("error", "the last one")
        assert waiting(syslog) == []
        assert not [line for line in waiting(journal) if "the last one" in line]


def test_no_event_leaves_a_descriptor_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with receiver(tmp_path / "syslog") as syslog:
        for file in (str(tmp_path / "log"), str(tmp_path), "/dev/full"):
            for kmsg in (str(tmp_path / "kmsg"), "/dev/full"):
                (tmp_path / "kmsg").touch()
                Log("info", file, NONE, NONE, kmsg=kmsg).event("error", "by the kernel's log")
                Log("info", file, NONE, str(tmp_path / "syslog")).event("error", "by syslog")
        assert len(waiting(syslog)) == 10  # 6, and 4 about the file
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_patient_event_waits_for_a_busy_journal(tmp_path: Path) -> None:
    with receiver(tmp_path / "journal") as journal:
        log = Log("info", "", str(tmp_path / "journal"), str(tmp_path / "none"), kmsg=NONE)
        for _ in range(2000):
            log.event("error", "x" * 1000)
        log.patience = 5.0
        reader = threading.Timer(0.3, lambda: [journal.recv(4096) for _ in range(3)])
        reader.start()
        started = time.monotonic()
        log.event("error", "the last one")
        assert 0.2 < time.monotonic() - started < 4
        reader.join()
        journal.setblocking(False)
        lines = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.append(journal.recv(4096))
    assert b"MESSAGE=the last one" in lines[-1]


def test_file_is_private_and_below_level_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log("warning", str(path), str(tmp_path / "none"), str(tmp_path / "none"), kmsg=NONE)
    log.event("info", "too quiet")
    assert not path.exists()
    log.event("warning", "loud", error="x y")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    line = path.read_text()
    assert " warning: loud | " in line and "LGSS_ERROR=x_y" in line and line.endswith("\n")


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    Log("info", str(tmp_path / "log"), NONE, NONE, kmsg=NONE).event("error", "x")
    assert not (tmp_path / "elsewhere").exists()


@given(st.text(max_size=300))
def test_hostile_text_stays_one_line_and_one_field(text: str) -> None:
    safe = printable(text, 100)
    assert safe.isascii() and safe.isprintable() and len(safe) <= 100


@given(text=st.text(max_size=100), value=st.text(max_size=100))
def test_a_message_cannot_forge_fields(
    tmp_path_factory: pytest.TempPathFactory, text: str, value: str
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = Log("info", str(path), NONE, NONE, kmsg=NONE)
    log.event("error", f"{text} | LGSS_KEY=1\nnext", error=value + " LGSS_KEY=2")
    line = path.read_text()
    assert line.count("\n") == 1
    # Neither from the left nor from the right: the bar stands once.
    fields = dict(word.split("=", 1) for word in line.rstrip("\n").partition(" | ")[2].split(" "))
    assert set(fields) == {"LGSS_ERROR", "LGSS_MS"}

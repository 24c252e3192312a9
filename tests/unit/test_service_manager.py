"""What systemd gives lgssd and is told by it; when lgssd ends; and the units."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.daemon import activation, limits
from lgss_keyring.daemon.life import Life
from lgss_keyring.daemon.notify import Notifier
from lgss_keyring.daemon.program import Program
from lgss_keyring.daemon.sockets import Sockets
from lgss_keyring.daemon.upcalls import DEFAULT_SOCKET
from lgss_keyring.formats.pipe import DEFAULT_SOCKET as PIPE_SOCKET
from lgss_keyring.system.log import Log

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="lgss-") as path:
        yield Path(path)


# sd_notify(3).


class Manager:
    """The manager's end, and the environment that it gives."""

    def __init__(self, path: str, **more: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": path, "PATH": "/bin", **more}
        self.notifier = Notifier(self.environment)

    def heard(self) -> list[str]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(1000).decode())
        return found


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_manager_hears_what_lgssd_does(folder: Path, kind: str) -> None:
    manager = Manager(f"@lgss-test-{os.getpid()}" if kind == "abstract" else f"{folder}/notify")
    with manager.socket:
        assert manager.environment == {"PATH": "/bin"}  # no program started later gets it
        manager.notifier.ready("waiting")
        manager.notifier.status("waiting")  # it says so already
        manager.notifier.status("3 at work")
        manager.notifier.reloading()
        manager.notifier.stopping("signal 15")
        manager.notifier.alive()  # nobody waits for that
        ready, status, reloading, stopping = manager.heard()
        assert ready == "READY=1\nSTATUS=waiting"
        assert status == "STATUS=3 at work"
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
        assert stopping == "STOPPING=1\nSTATUS=signal 15"


@pytest.mark.parametrize(
    ("pid", "period", "interval"),
    [
        (str(os.getpid()), "3000000", 1.0),
        ("", "3000000", 1.0),
        ("1", "3000000", None),
        ("", "0", None),
        ("", "soon", None),
    ],
)
def test_a_watchdog_hears_that_the_loop_runs(
    folder: Path, pid: str, period: str, interval: float | None
) -> None:
    manager = Manager(f"{folder}/notify", WATCHDOG_PID=pid, WATCHDOG_USEC=period)
    with manager.socket:
        assert manager.notifier.interval == interval
        manager.notifier.alive()
        assert manager.heard() == (["WATCHDOG=1"] if interval else [])


@pytest.mark.parametrize("path", ["", "relative", "/nobody/there"])
def test_without_a_manager_nothing_is_said_and_nothing_fails(path: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready("waiting")
    notifier.stopping("signal 15")


# sd_listen_fds(3).

LISTENING = """\
import os, socket, sys
kind, names, pid = sys.argv[1:4]
for number, name in enumerate(names.split(":"), 3):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_SEQPACKET)
    s.bind(f"{sys.argv[4]}/{number}")
    if kind != "bound":
        s.listen()
    os.dup2(s.fileno(), number + 20)
for number, name in enumerate(names.split(":"), 3):
    os.dup2(number + 20, number)
    os.set_inheritable(number + 20, False)
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=str(len(names.split(":"))),
                  LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[5]])
"""
TAKING = """\
import os
from lgss_keyring.daemon import activation
try:
    found = activation.take(os.environ)
    found = sorted(found.items())
    print(*(f"{name} {each.getsockname()[-1]} {each.get_inheritable()}" for name, each in found))
except activation.ActivationError as error:
    print("error:", error)
print([name for name in os.environ if name.startswith("LISTEN")])
"""


def taken(
    folder: Path, names: str, kind: str = "listening", pid: str = "", program: str = TAKING
) -> list[str]:
    command = [sys.executable, "-c", LISTENING, kind, names, pid, str(folder), program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=UNITS.parent, timeout=30, check=True)
    *lines, left = done.stdout.splitlines()
    assert left == "[]"  # no program started later takes them for its own
    return lines


def test_sockets_are_taken_by_their_names(folder: Path) -> None:
    assert taken(folder, "pipe:upcall") == ["pipe 3 False upcall 4 False"]


@pytest.mark.parametrize(
    ("names", "kind", "says"),
    [
        ("upcall", "bound", "'upcall' does not listen"),
        ("upcall", "stream", "'upcall' does not listen, or is not ListenSequentialPacket"),
        ("unknown", "listening", "LISTEN_FDNAMES='unknown'"),
        ("upcall:upcall", "listening", "LISTEN_FDNAMES='upcall:upcall'"),
    ],
)
def test_other_sockets_are_refused(folder: Path, names: str, kind: str, says: str) -> None:
    (line,) = taken(folder, names, kind)
    assert line.startswith("error:") and says in line


def test_sockets_for_another_process_are_left_alone(folder: Path) -> None:
    assert taken(folder, "upcall", pid="1") == [""]


@pytest.mark.parametrize("count", ["", "x", "0", "-1", "1000", "2"])
def test_a_wrong_count_is_refused(count: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "upcall"}
    with pytest.raises(activation.ActivationError):
        activation.take(environment)


HANDING_ON = """\
import os, sys
from lgss_keyring.daemon import activation
found = activation.take(os.environ)
environment = dict(os.environ)
activation.hand_on({f"own-{name}": found[name] for name in ("upcall", "pipe")}, environment)
os.execve(sys.executable, [sys.executable, "-c", TAKING], environment)
"""


def test_sockets_are_handed_on_to_the_next_program(folder: Path) -> None:
    program = HANDING_ON.replace("TAKING", repr(TAKING))
    assert taken(folder, "pipe:upcall", program=program) == ["own-pipe 3 False own-upcall 4 False"]


def test_our_own_sockets_go_with_us(folder: Path) -> None:
    pipe, upcall = folder / "pipe", folder / "run" / "upcall"
    sockets = Sockets(str(pipe), str(upcall), {})
    sockets.listen()
    assert (sockets.are_systemds, sockets.are_taken_over) == (False, False)
    assert pipe.is_socket() and upcall.stat().st_mode & 0o777 == 0o600
    sockets.let_go()
    assert not pipe.exists() and not upcall.exists()
    sockets.let_go()


# The program on disk.


def test_another_installation_is_noticed(folder: Path) -> None:
    for version in ("one", "two"):
        (folder / version).mkdir()
        (folder / version / "lgssd.py").touch()
    (folder / "current").symlink_to("one")
    (folder / "lgssd").symlink_to("current/lgssd.py")
    program = Program(str(folder / "lgssd"), str(folder / "one"))
    assert program.is_watched and not program.is_replaced()
    (folder / "next").symlink_to("two")
    (folder / "next").rename(folder / "current")
    assert program.is_replaced() and program.is_there()
    # Switched while it was started, before it looked.
    assert Program(str(folder / "lgssd"), str(folder / "one")).is_replaced()
    shutil.rmtree(folder / "two")
    assert program.is_replaced() and not program.is_there()


def test_a_checkout_is_not_watched(folder: Path) -> None:
    script = folder / "lgssd.py"
    script.touch()
    assert not Program(str(script), str(folder)).is_watched
    assert not Program("-c", str(folder)).is_replaced()


# When it ends.


class OfSystemd(Sockets):
    """Sockets that systemd holds."""

    def __init__(self) -> None:
        super().__init__("/nowhere", "/nowhere", {})
        self.are_systemds = True


def life(sockets: Sockets, environment: dict[str, str], program: Program | None = None) -> Life:
    settings = None
    return Life(sockets, settings, Log(), Notifier(environment), program or Program("-c"))  # type: ignore[arg-type]


def test_an_idle_lgssd_of_systemds_ends() -> None:
    lives = life(OfSystemd(), {})
    lives.look(1000.0, False, "")
    assert not lives.look(1000.0 + limits.IDLE_LIFE_SECONDS, True, "")
    assert not lives.look(1000.0 + limits.IDLE_LIFE_SECONDS + 1, False, "")  # a last request
    assert not lives.look(1000.0 + 2 * limits.IDLE_LIFE_SECONDS, True, "")
    assert lives.look(1010.0 + 2 * limits.IDLE_LIFE_SECONDS, True, "") == "there was nothing to do"
    assert not lives.begins_anew


def test_one_in_the_foreground_stays_and_sleeps() -> None:
    lives = life(Sockets("/nowhere", "/nowhere", {}), {})
    lives.look(1000.0, False, "")
    assert not lives.look(1e9, True, "")
    assert lives.timeout is None


def test_the_watchdog_is_told_in_time(folder: Path) -> None:
    manager = Manager(f"{folder}/notify", WATCHDOG_USEC="6000000")
    with manager.socket:
        lives = Life(OfSystemd(), None, Log(), manager.notifier, Program("-c"))  # type: ignore[arg-type]
        assert lives.timeout == 2.0
        last = now = 1000.0
        while now < 1020:
            lives.look(now, False, "")
            if "WATCHDOG=1" in manager.heard():
                assert now - last <= 3.0  # half of the time that it has
                last = now
            now += lives.timeout
        assert last > 1015


# The units.


def settings_of(unit: str) -> dict[str, str]:
    lines = (UNITS / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] not in "#[")


def test_the_units_have_the_sockets_of_the_program() -> None:
    upcall, pipe = settings_of("lgssd.socket"), settings_of("lgssd-pipe.socket")
    assert (upcall["ListenSequentialPacket"], upcall["SocketMode"]) == (DEFAULT_SOCKET, "0600")
    assert (pipe["ListenSequentialPacket"], pipe["SocketMode"]) == (PIPE_SOCKET, "0666")
    assert (upcall["FileDescriptorName"], pipe["FileDescriptorName"]) == (activation.UPCALL, activation.PIPE)
    assert (int(upcall["Backlog"]), int(pipe["Backlog"])) == (limits.UPCALL_BACKLOG, limits.BACKLOG)
    assert (UNITS / "lgss.conf").read_text().splitlines()[-1] == "d /run/lgss 0700 root root -"


def test_the_bounds_of_the_unit_hold_the_limits_of_the_program() -> None:
    unit = settings_of("lgssd.service")
    # Part 4 of its design: a user's workers hold 32 MiB together.
    memory = (limits.RESIDENT_WORKERS // limits.WORKERS_OF_AN_OWNER + 2) * 32
    messages = (limits.UPCALLS + limits.RECORDS) * 32 // 1024  # MiB: 32 KiB each
    assert unit["MemoryMax"] == "1G" and memory + messages + 64 <= 1024
    workers = limits.RESIDENT_WORKERS + 2 * limits.WORKERS_OF_AN_OWNER
    tasks = 2 + 2 * workers + limits.CONNECTIONS
    assert tasks <= int(unit["TasksMax"]) <= 1.2 * tasks
    ending = limits.ENDING_SECONDS + limits.DYING_SECONDS
    assert float(unit["TimeoutStopSec"]) > 2 * ending
    assert float(unit["WatchdogSec"]) >= 2 * limits.LOOK_SECONDS


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_the_unit_is_locked_down() -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=30",
        str(UNITS / "lgssd.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_units(folder: Path) -> None:
    names = ["lgssd.socket", "lgssd-pipe.socket", "lgssd.service"]
    for name in names:
        # The program is not installed where this runs.
        (folder / name).write_text((UNITS / name).read_text().replace("/usr/sbin/lgssd", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in names)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

"""lgssd started by the first upcall, reloaded, stopped, killed and updated: no request is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon import limits
from lgss_keyring.front import lgssd_messages

from .managed_lgssd import Asked, Installation, Load, Manager
from .waiting import within

ALICE, BOB = 61801, 61802


def folder_of(pid: int) -> str:
    """Where the program that a process runs lies."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return os.path.dirname(os.path.realpath(os.fsdecode(words[2])))


def workers(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# Under a manager, as systemd is one.


def test_the_first_upcall_starts_it_and_is_served() -> None:
    with Manager() as manager:
        assert not manager.is_running()
        first = manager.ask(ALICE).result()
        assert first in ("context", "silence")  # a slow machine may load lgssd for longer than that
        manager.pid()
        assert manager.ask(ALICE).result() == "context"
        assert manager.starts == 1
        assert {"READY=1", "STATUS=waiting for upcalls"} <= set(manager.heard)
        assert within(5, lambda: "STATUS=0 requests at work, 1 workers" in manager.heard)
        # A watchdog of 0.6 s hears of it.
        count = manager.heard.count("WATCHDOG=1")
        assert within(5, lambda: manager.heard.count("WATCHDOG=1") > count + 3)


def test_systemds_own_tool_starts_it() -> None:
    installation = Installation()
    path = str(installation.folder / "upcall.sock")
    command = ["systemd-socket-activate", "--seqpacket", "--fdname=upcall", "-l", path]
    process = subprocess.Popen([*command, *installation.command()], stderr=subprocess.DEVNULL)
    try:
        assert within(5, lambda: os.path.exists(path))
        assert within(20, lambda: Asked(path, str(installation.config), ALICE).result() == "context")
    finally:
        process.terminate()
        assert process.wait(10) == 0
        assert os.path.exists(path)  # it is not lgssd's
        installation.close()


def test_a_reload_reads_the_settings_and_replaces_the_workers() -> None:
    with Manager() as manager:
        assert within(20, lambda: manager.ask(ALICE).result() == "context")
        pid = manager.pid()
        (before,) = workers(pid)
        os.kill(pid, signal.SIGHUP)
        assert within(5, lambda: "RELOADING=1" in manager.heard and manager.heard.count("READY=1") == 2)
        assert within(5, lambda: not workers(pid))
        assert manager.ask(ALICE).result() == "context"
        assert before not in workers(pid)
        manager.installation.configure("[nonsense]")
        os.kill(pid, signal.SIGHUP)
        assert within(5, lambda: "STATUS=the configuration is wrong" in manager.heard)
        assert "nonsense" in manager.installation.log()
        assert manager.ask(ALICE).result() == "back"
        manager.installation.configure()
        os.kill(pid, signal.SIGHUP)
        assert within(5, lambda: manager.heard.count("READY=1") == 4)
        assert manager.ask(ALICE).result() == "context"


def test_a_stop_waits_for_what_is_at_work_and_sends_the_rest_back() -> None:
    with Manager() as manager:
        assert within(20, lambda: manager.ask(ALICE).result() == "context")
        pid = manager.pid()
        short, long = manager.ask(ALICE, "sleep-0.5"), manager.ask(BOB, "sleep-8")
        assert within(5, lambda: "STATUS=2 requests at work, 2 workers" in manager.heard)
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        assert short.result() == "context"
        assert long.result() == "back"
        assert within(5, lambda: manager.statuses == [0])
        assert time.monotonic() - started < limits.ENDING_SECONDS + limits.DYING_SECONDS + 3
        assert f"STATUS=ending: signal {signal.SIGTERM}" in manager.heard and "STOPPING=1" in manager.heard
        # Who comes now starts the next one.
        assert within(20, lambda: manager.ask(ALICE).result() == "context")
        assert manager.starts == 2


def test_an_idle_one_ends_and_comes_again() -> None:
    with Manager("limits.IDLE_LIFE_SECONDS = limits.IDLE_SECONDS = 0.3") as manager:
        assert within(20, lambda: manager.ask(ALICE).result() == "context")
        assert within(20, lambda: manager.statuses == [0])
        assert "STATUS=ending: there was nothing to do" in manager.heard
        assert within(20, lambda: manager.ask(ALICE).result() == "context")
        assert manager.starts == 2


def test_a_broken_configuration_starts_nothing_and_keeps_nobody() -> None:
    with Manager() as manager:
        manager.installation.configure("[nonsense]")
        assert manager.ask(ALICE).result() in ("back", "silence")
        assert within(10, lambda: manager.statuses == [1])
        time.sleep(0.5)
        assert manager.starts == 1  # nobody waits there, so it is not started again


def judge(load: Load) -> None:
    """Every request has had its context, or was sent back to its own process soon enough."""
    late = [each for each in load.results if each[0] == "silence"]
    # While lgssd starts on a busy machine nobody may hear of it in time.
    assert len(late) <= len(load.results) // 10, late
    assert load.count("context") > 100
    assert max(seconds for _, seconds in load.results) < lgssd_messages.SILENCE + limits.ENDING_SECONDS + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_request_is_lost_when_it_is_stopped_or_killed_under_load(number: signal.Signals) -> None:
    with Manager() as manager:
        with Load(manager.ask) as load:
            for _ in range(3):
                count = load.count("context")
                assert within(30, lambda count=count: load.count("context") > count + 50)
                os.kill(manager.pid(), number)
                ended = len(manager.statuses)
                assert within(10, lambda ended=ended: len(manager.statuses) > ended or manager.starts > ended)
            count = load.count("context")
            assert within(30, lambda: load.count("context") > count + 50)
        judge(load)
        assert set(manager.statuses) == {0 if number == signal.SIGTERM else -number}


def test_an_update_under_load_is_taken_by_the_next_one() -> None:
    with Manager() as manager, Load(manager.ask) as load:
        assert within(30, lambda: load.count("context") > 50)
        version = manager.installation.switch()
        assert within(20, lambda: manager.starts == 2)
        assert folder_of(manager.pid()) == str(version)
        count = load.count("context")
        assert within(30, lambda: load.count("context") > count + 50)
        assert "STATUS=ending: another program was installed" in manager.heard
        assert manager.statuses == [0]
    judge(load)


# In the foreground, with sockets of its own.


def test_an_update_under_load_is_executed_in_place() -> None:
    installation = Installation()
    path = str(installation.folder / "run" / "upcall.sock")
    pipe = str(installation.folder / "pipe.sock")
    options = ["--socket", pipe, "--upcall-socket", path]
    process = subprocess.Popen(installation.command(*options), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"listening at {pipe}\n"
        with Load(lambda uid: Asked(path, str(installation.config), uid)) as load:
            for _ in range(2):
                count = load.count("context")
                assert within(30, lambda count=count: load.count("context") > count + 50)
                version = installation.switch()
                assert process.stdout.readline() == f"listening at {pipe}\n"
                assert folder_of(process.pid) == str(version)
            count = load.count("context")
            assert within(30, lambda: load.count("context") > count + 50)
        judge(load)
        # The sockets stay open, so that nobody is sent away; what is in hand for longer than lgssd waits,
        # as on a busy machine, goes back.
        assert load.count("back") <= len(load.results) // 50
        # Uninstalled: it ends, and its sockets are gone.
        installation.program.unlink()
        assert process.wait(10) == 0
        assert not os.path.exists(path) and not os.path.exists(pipe)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        installation.close()


def test_a_stop_in_the_foreground_closes_the_sockets_at_once() -> None:
    installation = Installation()
    path = str(installation.folder / "run" / "upcall.sock")
    pipe = str(installation.folder / "pipe.sock")
    options = ["--socket", pipe, "--upcall-socket", path]
    process = subprocess.Popen(installation.command(*options), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        asked = Asked(path, str(installation.config), ALICE, "sleep-8")
        assert within(5, lambda: bool(workers(process.pid)))
        process.send_signal(signal.SIGTERM)
        assert within(0.9, lambda: not os.path.exists(path))  # while the other one is waited for
        assert Asked(path, str(installation.config), BOB).result() == "back"
        assert asked.result() == "back"
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        installation.close()

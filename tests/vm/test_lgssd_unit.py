"""lgssd as systemd runs it, in the sandbox of its unit: started by the first upcall, reloaded, killed,
stopped and updated while upcalls come, of which none is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The fixtures of the product's tests.
from test_product import PATIENCE, as_alice, callout_to_server, established, journal_of, soon
from test_product import acceptor as acceptor
from test_product import alice as alice
from test_product import nothing_left as nothing_left
from test_product import patience as patience
from test_product import rule as rule

from lgss_keyring.formats import payload
from tests.support.requestor import Answer, Requestor
from tests.support.site import AcceptorProcess

pytestmark = pytest.mark.vm

UNIT, SOCKET = "lgssd.service", "lgssd.socket"
LIBRARY = Path("/usr/lib/lgss_keyring")


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout.strip()


def shown(name: str) -> str:
    return systemctl("show", "--property", name, "--value", UNIT)


def main_pid() -> int:
    return int(shown("MainPID"))


def is_ready() -> bool:
    return shown("ActiveState") == "active"


@pytest.fixture
def listening() -> Iterator[None]:
    """The socket, which a site enables, with no lgssd yet."""
    systemctl("start", SOCKET)
    assert not main_pid()
    yield
    systemctl("stop", SOCKET)
    assert not main_pid()
    assert not Path("/run/lgss/upcall.sock").exists()
    # Nothing that it needed was forbidden, and it did not fail.
    assert shown("Result") == "success"


Ask = Callable[[], Answer]


@pytest.fixture
def ask(alice: Requestor, rule: str) -> Ask:
    numbers = iter(range(10_000))
    return lambda: alice.ask(f"{rule}{next(numbers)}", callout_to_server(1000))


def unit_of(answer: Answer) -> str:
    """Which unit's process has logged the end of an upcall; empty: its own processes have."""
    # None, if the user's lines of these ten seconds are too many.
    entries = journal_of(answer.key)
    return str(entries[-1].get("_SYSTEMD_UNIT", "")) if entries else ""


def served(ask: Ask) -> Answer:
    """The answer of lgssd, which may be loading still."""
    end = time.monotonic() + PATIENCE
    while True:
        answer = ask()
        established(answer)
        if unit_of(answer) == UNIT:
            return answer
        assert time.monotonic() < end, "no upcall was served by lgssd"


def test_the_units_are_installed_and_not_enabled(listening: None) -> None:
    done = subprocess.run(["systemctl", "is-enabled", SOCKET], capture_output=True, text=True)
    assert done.stdout.strip() == "disabled"
    units = [f"/usr/lib/systemd/system/{name}" for name in (SOCKET, "lgssd-pipe.socket", UNIT)]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    subprocess.run(["systemd-analyze", "security", "--threshold=30", UNIT], check=True, capture_output=True)
    status = Path("/run/lgss").lstat()
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o700)


def test_the_first_upcall_starts_it(listening: None, acceptor: AcceptorProcess, ask: Ask) -> None:
    established(ask())
    assert soon(is_ready)
    pid = main_pid()
    answer = served(ask)
    (known,) = [each for each in acceptor.contexts() if each["handle"] == established(answer).handle.hex()]
    assert known["initiator"] == "alice@LGSS.TEST"
    assert main_pid() == pid
    # The user's own cache has the service ticket: /tmp can be written there.
    listed = subprocess.check_output(["klist"], text=True, user=1000, group=1000, extra_groups=[])
    assert "lustre_mds/server.lgss.test" in listed


def test_the_machine_too(listening: None, acceptor: AcceptorProcess, ask: Ask, rule: str) -> None:
    served(ask)
    with Requestor(0) as root:
        answer = root.ask(f"{rule}machine", callout_to_server(flags="r"))
    (known,) = [each for each in acceptor.contexts() if each["handle"] == established(answer).handle.hex()]
    assert known["initiator"] == "lustre_root/client.lgss.test@LGSS.TEST"
    assert unit_of(answer) == UNIT


def test_a_user_without_a_ticket_is_told_before_the_key_is_there(
    listening: None, acceptor: AcceptorProcess, ask: Ask
) -> None:
    served(ask)
    as_alice("kdestroy")
    try:
        answer = ask()
        # By lgssd's word the key is rejected; on a machine that slow it may come too late.
        assert answer.error or isinstance(payload.unpack(answer.data), payload.FailurePayload)
    finally:
        as_alice("kinit", "alice", stdin="password\n")


def test_a_process_of_lgssds_cannot_do_more(listening: None, acceptor: AcceptorProcess, ask: Ask) -> None:
    served(ask)
    pid = main_pid()
    status = Path(f"/proc/{pid}/status").read_text()
    capabilities = sum(1 << number for number in (5, 6, 7, 19))  # KILL, SETGID, SETUID, SYS_PTRACE
    assert f"CapEff:\t{capabilities:016x}" in status and f"CapBnd:\t{capabilities:016x}" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{worker}/status").read_text()
    assert "Uid:\t1000\t1000\t1000\t1000" in status and f"CapEff:\t{0:016x}" in status


def test_a_reload(listening: None, acceptor: AcceptorProcess, ask: Ask) -> None:
    served(ask)
    pid = main_pid()
    systemctl("reload", UNIT)
    assert soon(is_ready)
    served(ask)
    assert main_pid() == pid


@pytest.fixture
def updated() -> Iterator[Callable[[], None]]:
    """Switches to a copy of the installation, as `make install` does."""
    current = LIBRARY / "current"
    before = os.readlink(current)
    copies: list[Path] = []

    def switch(leads_to: str) -> None:
        link = LIBRARY / ".current.test"
        link.symlink_to(leads_to)
        link.rename(current)

    def update() -> None:
        copy = LIBRARY / f"{before}-copy-{len(copies)}"
        copies.append(copy)
        shutil.copytree(LIBRARY / before, copy, symlinks=True)
        switch(copy.name)

    yield update
    switch(before)
    # Nobody uses a copy any more.
    if main_pid():
        systemctl("stop", UNIT)
    for copy in copies:
        shutil.rmtree(copy)


def test_no_upcall_is_lost_under_load(
    listening: None, acceptor: AcceptorProcess, ask: Ask, rule: str, updated: Callable[[], None]
) -> None:
    """While it is stopped, killed, reloaded, restarted and updated."""
    served(ask)
    errors: list[BaseException] = []

    def gone_or_another(pid: int) -> bool:
        return main_pid() != pid

    def disturb() -> None:
        try:
            systemctl("stop", UNIT)
            assert soon(is_ready, PATIENCE)
            pid = main_pid()
            assert pid > 1
            os.kill(pid, signal.SIGKILL)
            assert soon(lambda: gone_or_another(pid), PATIENCE)
            assert soon(is_ready, PATIENCE)
            systemctl("reload", UNIT)
            systemctl("restart", UNIT)
            restarted = main_pid()
            updated()
            assert soon(lambda: gone_or_another(restarted), PATIENCE)
            assert soon(is_ready, PATIENCE)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    answers: list[Answer] = []
    users = [Requestor(1000) for _ in range(6)]
    try:
        number = 0
        while thread.is_alive():
            # Fewer than a user's quota of keys: each round's are let go.
            for user in users:
                user.start(f"{rule}load.{number}", callout_to_server(1000), wait=PATIENCE)
                number += 1
            answers += [user.result() for user in users]
            if number % 60 == 0:
                for user in users:
                    user.close()
                users = [Requestor(1000) for _ in range(6)]
    finally:
        thread.join()
        for user in users:
            user.close()
    assert not errors, errors
    assert len(answers) >= 12
    handles = {established(answer).handle for answer in answers}
    assert len(handles) == len(answers)
    time.sleep(11)  # until the user's lines are shown again
    served(ask)

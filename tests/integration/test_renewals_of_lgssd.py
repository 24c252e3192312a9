"""lgssd's loop renews tickets of short lives before they end, and waits for no KDC."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lgss_keyring.formats.config import Config, Upcall
from tests.support.requestor import Requestor
from tests.support.site import Site, machine_callout

from .answers import established
from .lgssd_process import Daemon, upcall
from .renewing import PRINCIPAL, Loop, exchanges, more, use
from .waiting import pace, within


def test_tickets_of_real_upcalls_are_renewed_before_their_end(
    site: Site, root: Requestor, private: Path, node: Config, loop: Loop, life: Callable[[int, str], None]
) -> None:
    """Ten seconds after the first upcall's tickets have ended, an upcall needs no KDC."""
    life(24, PRINCIPAL)
    with site.upcalls() as upcalls:
        started = time.time()
        established(root.ask(upcalls.name(), machine_callout()))
        before = exchanges(site)
        loop.until(lambda: more(site, before)[1] >= 1, pace(24))
        assert 12 < time.time() - started < 24
        loop.until(lambda: time.time() > started + 25 and not loop.renewals.has_process, pace(30))
        assert loop.renewals.has_tickets
        before = exchanges(site)
        established(root.ask(upcalls.name(), machine_callout()))
        # No TGS exchange.  For a ticket that lives half a minute GSS-API asks for another TGT itself.
        assert exchanges(site)[1] == before[1]
    assert "has been renewed" in loop.log() and "warning" not in loop.log()


def test_kdc_that_comes_back_and_one_warning(
    site: Site, node: Config, loop: Loop, life: Callable[[int, str], None]
) -> None:
    life(12, PRINCIPAL)
    use(node)
    site.realm.stop_kdc()
    try:
        loop.until(lambda: " warning: " in loop.log(), pace(14))
        (line,) = [line for line in loop.log().splitlines() if " warning: " in line]
        assert "the ticket of lustre_root/localhost@LGSS.TEST cannot be renewed" in line
        assert "it ends" in line and "check that the realm's KDC runs" in line
        count = loop.log().count("cannot be renewed")
        loop.until(lambda: loop.log().count("cannot be renewed") > count, pace(5))
    finally:
        site.realm.start_kdc()
    before = exchanges(site)
    loop.until(lambda: more(site, before)[1] >= 1, pace(8))
    assert loop.log().count(" warning: ") == 1


def test_silent_kdc_holds_nothing_up(site: Site, node: Config, life: Callable[[int, str], None]) -> None:
    """The process is killed at the limit; the loop has waited for nothing."""
    life(8, PRINCIPAL)
    use(node)
    loop = Loop(Config(**{**node.__dict__, "upcall": Upcall(timeout=1)}))
    site.realm.pause_kdc()
    longest = 0.0
    try:
        end = time.monotonic() + pace(14)
        while "was ended after 1 s" not in loop.log():
            assert time.monotonic() < end, loop.log()
            before = time.process_time()
            loop.renewals.turn()
            longest = max(longest, time.process_time() - before)
            time.sleep(0.01)
    finally:
        site.realm.resume_kdc()
    assert longest < 0.2
    before_end = exchanges(site)
    loop.until(lambda: more(site, before_end)[1] >= 1, pace(8))
    loop.renewals.close()


def test_nothing_in_use_costs_no_process(node: Config, loop: Loop) -> None:
    for _ in range(3):
        loop.renewals.turn()
        assert not loop.renewals.has_process and loop.renewals.timeout > 0.5


def test_use_is_noticed_by_the_loop(site: Site, node: Config, loop: Loop) -> None:
    loop.renewals.turn()
    assert not loop.renewals.has_tickets
    use(node)
    loop.until(lambda: loop.renewals.has_tickets and not loop.renewals.has_process, pace(5))
    assert loop.renewals.timeout > 0.5
    assert within(1, lambda: not loop.renewals.has_process)


def test_lgssd_renews_the_tickets_that_its_own_workers_got(
    site: Site, private: Path, daemon: Daemon, life: Callable[[int, str], None]
) -> None:
    life(16, PRINCIPAL)
    daemon.ask(upcall(0).pack())
    before = exchanges(site)
    assert within(pace(16), lambda: more(site, before)[1] >= 1)
    assert within(5, lambda: "has been renewed" in daemon.log_file.read_text())


LGSSD_OF_SYSTEMD = """
import os, socket, sys
from lgss_keyring.daemon import limits
limits.LOOK_SECONDS, limits.IDLE_LIFE_SECONDS = 0.1, 1.0
for number, name in enumerate(("upcall", "pipe"), 3):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{sys.argv.pop()}.{name}")
    listener.listen()
    if listener.fileno() != number:
        os.dup2(listener.fileno(), number)
    listener.detach()
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="upcall:pipe")
from lgss_keyring.daemon.__main__ import main
main()
"""


@pytest.mark.parametrize("is_in_use", [False, True])
def test_lgssd_that_systemd_started_stays_while_there_are_tickets_to_renew(
    site: Site, node: Config, tmp_path: Path, is_in_use: bool
) -> None:
    if is_in_use:
        use(node)
    path = str(tmp_path / "socket")
    with site.upcalls() as upcalls:  # for its configuration, which is that of ``node``
        command = [sys.executable, "-c", LGSSD_OF_SYSTEMD, "--config", str(upcalls.config_file), path, path]
        with subprocess.Popen(command) as lgssd:
            try:
                if is_in_use:
                    with pytest.raises(subprocess.TimeoutExpired):
                        lgssd.wait(pace(5))
                else:
                    assert lgssd.wait(pace(5)) == 0
            finally:
                lgssd.terminate()

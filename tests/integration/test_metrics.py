"""lgssd's metrics: at its socket, and in a file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon.scrapes import SOCKET_NAME
from lgss_keyring.formats.config import Config
from lgss_keyring.formats.errors import Kind
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.front import lgssd_messages
from lgss_keyring.worker.creds.renewal import KeptTickets
from tests.support.samples import ask, connect, scrape
from tests.support.site import Site
from tests.support.stage import CHECKOUT

from .fake_lgssd import FakeLgssd, Worker, serve_all
from .lgssd_process import Daemon
from .renewing import use
from .waiting import within

ALICE, BOB = 61801, 61802


def path_of(lgssd: FakeLgssd) -> str:
    return str(lgssd.folder / SOCKET_NAME)


def blocked(lgssd: FakeLgssd) -> float:
    return scrape(path_of(lgssd)).value("lgssd_workers", owner="users", state="blocked")


def _fail(worker: Worker) -> None:
    while True:
        worker.failed(worker.job().number, Failed(errno.ENOKEY, 0, Kind.NO_TICKET, "there is none"))


def test_upcalls_are_counted_and_timed() -> None:
    with FakeLgssd(serve_all) as lgssd:
        for uid in (ALICE, ALICE, BOB):
            lgssd.ask(uid).answer()
        child = lgssd.ask(ALICE)
        assert child.hear() == lgssd_messages.GO
        child.hear()
        child.connection.send(lgssd_messages.pack_done(errno.EKEYREVOKED))
        assert child.hear() == b""
        elsewhere = lgssd.ask(ALICE, config="/etc/another.toml")
        assert elsewhere.hear() == lgssd_messages.DO_IT_YOURSELF
        assert elsewhere.hear() == b""
        found = scrape(path_of(lgssd))
    assert found.upcalls("established") == 3
    assert found.upcalls("lost", "untaken") == 1
    assert found.upcalls("handed_back", "other-config", "other") == 1
    for phase, count in (("queue", 4), ("credentials", 4), ("kdc_and_server", 4), ("update", 4), ("kdc", 0)):
        assert found.value("lgssd_phase_seconds_count", phase=phase) == count, phase
    assert found.value("lgssd_upcall_seconds_count") == 4
    assert found.value("lgssd_workers", owner="users", state="idle") == 2
    assert found.value("lgssd_worker_events_total", owner="users", event="started") == 2
    assert found.value("lgssd_open_upcalls") == 0
    assert abs(found.value("lgssd_start_time_seconds") - time.time()) < 300


def test_failures_are_counted_by_cause() -> None:
    with FakeLgssd(_fail) as lgssd:
        assert lgssd.ask(ALICE).answer().errno == errno.ENOKEY
        assert scrape(path_of(lgssd)).upcalls("failed", "no-ticket") == 1


def _token(worker: Worker) -> None:
    """Write a token, and let the KDC and the server take their time."""
    while True:
        job = worker.job()
        worker.ready(job.number)
        time.sleep(0.12)
        worker.send(job.number, b"Ttoken")
        number, message = worker.next()
        assert (number, message[:1]) == (job.number, b"R")
        worker.established(job.number)


def test_the_time_goes_to_the_phase_that_takes_it(tmp_path: Path) -> None:
    (tmp_path / "sptlrpc/gss").mkdir(parents=True)
    (tmp_path / "sptlrpc/gss/init_channel").touch()
    with FakeLgssd(_token, {"lustre": {"parameters": str(tmp_path)}}) as lgssd:
        child = lgssd.ask(ALICE, key_type="lgssc")
        assert child.hear() == lgssd_messages.GO
        assert child.hear()[:1] == b"T"
        time.sleep(0.3)
        child.connection.send(lgssd_messages.pack_reply(0, 0, b"reply"))
        child.answer()
        found = scrape(path_of(lgssd))
    spent = {
        phase: found.value("lgssd_phase_seconds_sum", phase=phase)
        for phase in ("queue", "credentials", "kdc", "server", "kdc_and_server", "update")
    }
    assert spent["kdc"] >= 0.12 and spent["server"] >= 0.3 and spent["kdc_and_server"] == 0
    assert sum(spent.values()) == pytest.approx(found.value("lgssd_upcall_seconds_sum"))


def _block_alice(worker: Worker) -> None:
    while True:
        job = worker.job()
        if b"block" in b"\0".join(map(os.fsencode, job.arguments)):
            time.sleep(60)
        worker.ready(job.number)
        worker.established(job.number)


def test_workers_are_counted() -> None:
    with FakeLgssd(_block_alice, {"upcall": {"timeout": 2}}) as lgssd:
        child = lgssd.ask(ALICE, obd_name="block")
        assert within(5, lambda: blocked(lgssd))
        assert child.answer().errno == errno.ETIMEDOUT
        found = scrape(path_of(lgssd))
    for event in ("started", "blocked", "killed"):
        assert found.value("lgssd_worker_events_total", owner="users", event=event) == 1, event
    assert found.upcalls("failed", "limit") == 1
    # It was in the phase in which it hung until its deadline.
    assert found.value("lgssd_phase_seconds_sum", phase="credentials") > 1


# Whom it serves, and what they may do.


def test_scrapers_that_say_nothing_delay_no_upcall_and_are_ended() -> None:
    with FakeLgssd(serve_all) as lgssd:
        silent = [connect(path_of(lgssd)) for _ in range(2)]
        assert within(5, lambda: len(lgssd.workers()) == 2)
        assert ask(path_of(lgssd))[0].startswith(b"HTTP/1.0 503 ")
        scrapers = lgssd.workers()
        for pid in scrapers:
            os.kill(pid, signal.SIGSTOP)  # nothing that they do can be waited for
        for _ in range(50):
            lgssd.ask(ALICE).answer()
        for pid in scrapers:
            with contextlib.suppress(ProcessLookupError):  # killed, if this machine was slow
                os.kill(pid, signal.SIGCONT)
        for each in silent:
            assert each.recv(1) == b""  # after 5 s
            each.close()
        assert within(5, lambda: not set(scrapers) & set(lgssd.workers()))
        assert scrape(path_of(lgssd)).upcalls("established") == 50


def test_a_stopped_scraper_is_killed() -> None:
    with FakeLgssd(serve_all) as lgssd, connect(path_of(lgssd)):
        assert within(5, lambda: len(lgssd.workers()) == 1)
        os.kill(lgssd.workers()[0], signal.SIGSTOP)
        assert within(15, lambda: not lgssd.workers())


def test_lgssd_does_not_load_prometheus_client() -> None:
    with FakeLgssd(serve_all) as lgssd:
        assert scrape(path_of(lgssd)).names
    code = "import sys, lgss_keyring.daemon.__main__ as m; m._preload(); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert "prometheus_client" not in done.stdout


def test_nothing_is_left_of_scrapes() -> None:
    with FakeLgssd(serve_all) as lgssd:
        scrape(path_of(lgssd))
        assert within(5, lambda: not lgssd.workers())
        before = len(os.listdir(f"/proc/{lgssd.pid}/fd"))
        for _ in range(5):
            ask(path_of(lgssd), b"GET / HTTP/1.1\r\n\r\n")
            assert within(5, lambda: not lgssd.workers())
        assert len(os.listdir(f"/proc/{lgssd.pid}/fd")) == before


# The machine's TGT, and the whole.


def test_the_life_left_of_the_machines_tgt(node: Config) -> None:
    krb5 = {name: getattr(node.krb5, name) for name in ("config", "keytab", "ccache_directory")}
    with FakeLgssd(serve_all, {"krb5": krb5}) as lgssd:
        assert "lgssd_machine_tgt_left_seconds" not in scrape(path_of(lgssd)).names
        use(node)
        left = scrape(path_of(lgssd)).value("lgssd_machine_tgt_left_seconds")
    (due,) = KeptTickets(node.krb5, "", 0.0, lambda *_: None).due(time.time())
    assert due.is_tgt and abs(due.end - time.time() - left) < 60


def test_lgssd_serves_its_metrics(site: Site) -> None:
    daemon = Daemon(site, 1)
    try:
        path = Path(daemon.upcall_path).with_name(SOCKET_NAME)
        assert "lgssd_start_time_seconds" in scrape(str(path)).names
        assert within(5, lambda: not daemon.children())  # it is waited for at once
    finally:
        daemon.close()
    assert not path.exists()

"""The tickets that the machine keeps from one upcall to the next."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lgss_keyring.worker.creds import ticket_file
from tests.support.realm import Realm
from tests.support.requestor import Requestor
from tests.support.site import AcceptorProcess, Site, Upcalls, machine_callout

from .answers import established, proven
from .credentials import initiator, issued, kinit, messages
from .failures import failed
from .waiting import pace

TGT, SERVICE = "lustre_root_localhost@LGSS.TEST.", "lustre_root_localhost@LGSS.TEST.lustre_mds@localhost."
OSS = machine_callout("r", lustre_service=2)


def kept(folder: Path) -> list[Path]:
    """The files with tickets: the TGT's, and each service's after it."""
    files = [path for path in folder.glob("*@LGSS.TEST.*") if path.suffix != ".new"]
    return sorted(files, key=lambda path: "@localhost." in path.name)


def together(number: int, upcalls: Upcalls, callout: str) -> None:
    """So many upcalls at once, each of which must succeed."""
    requestors = [Requestor(0) for _ in range(number)]
    try:
        for one in requestors:
            one.start(upcalls.name(), callout, wait=pace(20))
        for one in requestors:
            established(one.result())
    finally:
        for one in requestors:
            one.close()


@contextmanager
def no_kdc(site: Site) -> Iterator[None]:
    site.realm.stop_kdc()
    try:
        yield
    finally:
        site.realm.start_kdc()


def test_parallel_mounts_make_one_as_exchange(site: Site, upcalls: Upcalls, private: Path) -> None:
    """And one TGS exchange for each service, by the KDC's log."""
    before = issued(site, "AS_REQ"), issued(site, "TGS_REQ")
    together(16, upcalls, machine_callout())
    assert (issued(site, "AS_REQ"), issued(site, "TGS_REQ")) == (before[0] + 1, before[1] + 1)
    together(2, upcalls, machine_callout())
    assert (issued(site, "AS_REQ"), issued(site, "TGS_REQ")) == (before[0] + 1, before[1] + 1)
    together(4, upcalls, OSS)
    assert (issued(site, "AS_REQ"), issued(site, "TGS_REQ")) == (before[0] + 1, before[1] + 2)
    files = kept(private)
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 3
    assert private.stat().st_mode & 0o777 == 0o700
    assert files[0].name.startswith(TGT) and any(path.name.startswith(SERVICE) for path in files[1:])


def test_kdc_down_while_the_tickets_are_good(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path
) -> None:
    established(root.ask(upcalls.name(), machine_callout()))
    with no_kdc(site):
        answer = root.ask(upcalls.name(), machine_callout())
        proven(site, answer)
        # The other way round: a service that no ticket is there for.
        answer = root.ask(upcalls.name(), OSS, wait=pace(20))
        failed(answer, upcalls, errno.EHOSTUNREACH, "kdc-unreachable", limit=20)


def test_service_tickets_for_a_tgt_of_roots_cache(
    site: Site, root: Requestor, root_cache: Path, keytab: Callable[..., Path], private: Path
) -> None:
    """Kept for that TGT; root's cache stays as it is."""
    path = keytab("host/localhost")
    kinit(site, path, "host/localhost", root_cache)
    before = root_cache.read_bytes()
    with site.upcalls({"krb5": {"keytab": "/nonexistent"}}) as upcalls:
        exchanges = issued(site, "TGS_REQ", "host/localhost")
        for _ in range(3):
            assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "host/localhost"
        assert issued(site, "TGS_REQ", "host/localhost") == exchanges + 1
        with no_kdc(site):
            established(root.ask(upcalls.name(), machine_callout()))
        assert root_cache.read_bytes() == before
        kinit(site, path, "host/localhost", root_cache)
        established(root.ask(upcalls.name(), machine_callout()))
        # Another TGT, which may be of another realm of that name.
        assert issued(site, "TGS_REQ", "host/localhost") == exchanges + 2
    (file,) = kept(private)
    assert file.name.startswith("host_localhost@LGSS.TEST.lustre_mds@localhost.")


def test_ticket_for_a_server_whose_key_was_changed(
    site: Site, root: Requestor, private: Path, tmp_path: Path
) -> None:
    """It is refused, and replaced once for all upcalls."""
    with site.upcalls() as upcalls:
        established(root.ask(upcalls.name(), OSS))
    (tmp_path / "all").write_bytes(site.population.server_keytab.read_bytes())
    site.realm.administer("cpw", "-randkey", "lustre_oss/localhost")
    site.realm.extract_keytab(site.population.server_keytab, "lustre_oss/localhost")
    new_keytab = site.realm.extract_keytab(tmp_path / "new", "lustre_oss/localhost")
    acceptor = AcceptorProcess(site.realm, new_keytab, site.directory)
    before = issued(site, "TGS_REQ")
    try:
        with site.upcalls({"rpcsec_gss": {"port": acceptor.port}}) as upcalls:
            together(8, upcalls, OSS)
            assert issued(site, "TGS_REQ") == before + 1
            assert "trying once more with a new ticket" in messages(upcalls)
            established(root.ask(upcalls.name(), OSS))
            assert issued(site, "TGS_REQ") == before + 1
    finally:
        acceptor.close()


def test_ticket_that_is_refused_when_it_is_new(
    site: Site, root: Requestor, private: Path, keytab: Callable[..., Path]
) -> None:
    """The server's keytab lacks the key: one exchange and one refusal for each upcall, and
    nothing is kept."""
    acceptor = AcceptorProcess(site.realm, keytab("lustre_mds/localhost"), site.directory)
    before = issued(site, "TGS_REQ")
    try:
        with site.upcalls({"rpcsec_gss": {"port": acceptor.port}}) as upcalls:
            for number in (1, 2):
                answer = root.ask(upcalls.name(), OSS)
                failed(answer, upcalls, errno.EACCES, "refused-by-acceptor", "keytab")
                assert issued(site, "TGS_REQ") == before + number
            assert "once more" not in messages(upcalls)
    finally:
        acceptor.close()
    assert len(kept(private)) == 1


def test_refused_ticket_stays_while_there_is_no_other(
    site: Site, root: Requestor, upcalls: Upcalls, private: Path, keytab: Callable[..., Path]
) -> None:
    """A user's forged request may have made a wrong server refuse it."""
    established(root.ask(upcalls.name(), OSS))
    file = kept(private)[1]
    before = file.read_bytes()
    acceptor = AcceptorProcess(site.realm, keytab("lustre_mds/localhost"), site.directory)
    try:
        with site.upcalls({"rpcsec_gss": {"port": acceptor.port}}) as others, no_kdc(site):
            answer = root.ask(others.name(), OSS, wait=pace(20))
            failed(answer, others, errno.EHOSTUNREACH, "kdc-unreachable", limit=20)
    finally:
        acceptor.close()
    assert file.read_bytes() == before


def test_service_ticket_that_has_expired(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path
) -> None:
    site.realm.administer("modprinc", "-maxlife", "4 seconds", "lustre_oss/localhost")
    try:
        established(root.ask(upcalls.name(), OSS))
        before = issued(site, "TGS_REQ"), issued(site, "AS_REQ")
        time.sleep(3.2)  # less than a quarter is left
        established(root.ask(upcalls.name(), OSS))
        assert (issued(site, "TGS_REQ"), issued(site, "AS_REQ")) == (before[0] + 1, before[1])
    finally:
        site.realm.administer("modprinc", "-maxlife", "0 seconds", "lustre_oss/localhost")


@pytest.mark.parametrize("which", [0, 1], ids=["TGT", "service"])
def test_crash_while_the_ticket_was_written(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path, which: int
) -> None:
    """What a killed upcall leaves: half a new file, or at worst a broken one; no lock."""
    established(root.ask(upcalls.name(), machine_callout()))
    files = kept(private)
    cache = files[which]
    good = cache.read_bytes()
    cache.with_name(cache.name + ".new").write_bytes(good[:100])
    cache.write_bytes(good[: len(good) // 2])
    established(root.ask(upcalls.name(), machine_callout()))
    assert len(cache.read_bytes()) > 300
    assert kept(private) == files == sorted(private.glob("*@LGSS.TEST.*"), key=files.index)


@pytest.mark.parametrize("which", [0, 1], ids=["TGT", "service"])
def test_lock_that_somebody_keeps_is_not_waited_for(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path, which: int
) -> None:
    established(root.ask(upcalls.name(), machine_callout()))
    cache = kept(private)[which]
    cache.unlink()
    with open(private / ticket_file.LOCKS, "r+b") as locks:
        fcntl.lockf(locks, fcntl.LOCK_EX, 1, ticket_file.lock_place(str(cache)))
        started = time.monotonic()
        established(root.ask(upcalls.name(), machine_callout(), wait=pace(12)))
        took = time.monotonic() - started
        assert took > 4 and pace.met(took, 8)
    assert "not waiting for it any longer" in messages(upcalls)


def test_folder_that_others_may_write_is_not_used(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path
) -> None:
    private.mkdir()
    private.chmod(0o777)
    established(root.ask(upcalls.name(), machine_callout()))
    assert list(private.iterdir()) == []
    assert "others than root may write there" in messages(upcalls)


def test_cached_ticket_of_a_realm_made_anew(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path
) -> None:
    """It would stand in the way for its whole life."""
    established(root.ask(upcalls.name(), machine_callout()))
    cache = kept(private)[0]
    with Realm() as other:
        population = other.populate("localhost")
        command = ["kinit", "-k", "-t", str(population.machine_keytab), "-c", f"FILE:{cache}"]
        env = {**os.environ, **other.env}
        subprocess.run([*command, "lustre_root/localhost"], env=env, check=True, capture_output=True)
    foreign = cache.read_bytes()
    answer = root.ask(upcalls.name(), machine_callout())
    proven(site, answer)
    (event,) = [event for event in upcalls.log() if "getting a new one" in event["message"]]
    assert event["level"] == "info"
    assert cache.read_bytes() != foreign


def test_kept_ticket_of_an_enctype_that_is_no_longer_permitted(
    site: Site, root: Requestor, private: Path
) -> None:
    """It is replaced by itself, without a warning."""
    config = site.directory / "enctypes.conf"
    text = Path(site.realm.krb5_conf).read_text()

    def permit(enctype: str) -> None:
        config.write_text(
            text.replace("[libdefaults]\n", f"[libdefaults]\n  permitted_enctypes = {enctype}\n")
        )

    permit("aes128-cts-hmac-sha1-96")
    with site.upcalls({"krb5": {"config": str(config)}}) as upcalls:
        assert established(root.ask(upcalls.name(), machine_callout())).enctype == 17
        permit("aes256-cts-hmac-sha1-96")
        assert established(root.ask(upcalls.name(), machine_callout())).enctype == 18
        before = issued(site, "AS_REQ")
        established(root.ask(upcalls.name(), machine_callout()))
        assert issued(site, "AS_REQ") == before
        assert {event["level"] for event in upcalls.log()} == {"info", "debug"}

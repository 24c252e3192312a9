"""The machine's tickets are renewed, with a real KDC."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lgss_keyring.formats.config import Config, Krb5
from lgss_keyring.formats.errors import CredentialError, Kind
from lgss_keyring.worker import krb5_library, limits
from lgss_keyring.worker.creds import machine, renewal, ticket_file, uses
from lgss_keyring.worker.creds.renewal import KeptTickets
from tests.support.site import USER_UID, Site

from .credentials import kinit
from .renewing import MDS, OSS, SEED, Steps, dues, exchanges, later, more, tickets, use


def test_renewal_of_a_tgt_takes_its_service_tickets_along(site: Site, node: Config, steps: Steps) -> None:
    """One AS exchange, and a TGS exchange for each service; upcalls need none after it."""
    use(node, MDS)
    use(node, OSS)
    (due,) = dues(node, steps)
    assert due.is_tgt and set(due.services) == {MDS, OSS} and due.moment < due.latest < due.end
    time.sleep(1.1)  # the times of tickets are whole seconds
    before = exchanges(site)
    tickets(node, steps).renew(due, later())
    assert more(site, before) == (1, 2)
    (after,) = dues(node, steps)
    assert after.end > due.end and after.moment != due.moment
    site.realm.stop_kdc()
    try:
        use(node, MDS)
        use(node, OSS)
    finally:
        site.realm.start_kdc()
    assert exchanges(site) == (before[0] + 1, before[1] + 2)


def test_service_files_are_good_for_the_old_tgt_too(
    site: Site, node: Config, steps: Steps, private: Path
) -> None:
    """An upcall that read the old TGT just before, and a renewal that was killed before its end."""
    use(node)
    (due,) = dues(node, steps)
    old = Path(due.file.path).read_bytes()
    time.sleep(1.1)
    tickets(node, steps).renew(due, later())
    Path(due.file.path).write_bytes(old)
    before = exchanges(site)
    use(node)
    assert exchanges(site) == before


def test_services_that_there_was_no_time_for_are_due_at_once(site: Site, node: Config, steps: Steps) -> None:
    use(node)
    (due,) = dues(node, steps)
    time.sleep(1.1)
    tickets(node, steps).renew(due, time.monotonic() - 1)
    service, tgt = dues(node, steps)
    assert not service.is_tgt and service.moment <= time.time() < tgt.moment
    before = exchanges(site)
    tickets(node, steps).renew(service, later())
    use(node)
    assert more(site, before) == (0, 1)


def test_service_ticket_that_lives_shorter_has_a_moment_of_its_own(
    site: Site, node: Config, steps: Steps, life: Callable[[int, str], None]
) -> None:
    life(60, "lustre_mds/localhost")
    use(node)
    service, _ = dues(node, steps)
    assert not service.is_tgt and service.services == (MDS,)
    assert 59 <= service.life <= 60 and 30 < service.moment - time.time() < 46
    time.sleep(1.1)
    before = exchanges(site)
    tickets(node, steps).renew(service, later())
    assert more(site, before) == (0, 1)
    assert dues(node, steps)[0].end > service.end


def test_what_only_forged_requests_used_is_not_renewed(
    site: Site, node: Config, steps: Steps, private: Path
) -> None:
    use(node, MDS, USER_UID)
    assert dues(node, steps) == [] and not (private / uses.FOLDER).exists()
    use(node, OSS)
    use(node, MDS, USER_UID)
    (due,) = dues(node, steps)
    assert due.services == (OSS,)
    # Root has not asked for a long time: what is left may all be forged.
    (note,) = (private / uses.FOLDER).iterdir()
    note.write_bytes(b"%020d" % int(time.time() - 8 * 86400) + note.read_bytes()[20:])
    use(node, OSS, USER_UID)
    assert dues(node, steps) == []
    use(node, OSS)
    assert len(dues(node, steps)) == 1


def test_tickets_of_containers_and_of_other_settings_are_not_renewed(
    site: Site, node: Config, steps: Steps, private: Path, keytab: Callable[..., Path]
) -> None:
    use(node)
    for changed in ({"keytab": str(keytab("host/localhost"))}, {"principal": "host/x"}, {"config": "/x"}):
        other = Krb5(**{**node.krb5.__dict__, **changed})
        assert KeptTickets(other, SEED, 0.0, lambda *_: None).due(time.time()) == []


def test_kdc_that_is_down_leaves_the_old_ticket(site: Site, node: Config, steps: Steps) -> None:
    use(node)
    (due,) = dues(node, steps)
    before = Path(due.file.path).read_bytes()
    time.sleep(1.1)
    site.realm.stop_kdc()
    try:
        with pytest.raises(CredentialError) as caught:
            tickets(node, steps).renew(due, later())
        assert caught.value.kind == Kind.KDC_UNREACHABLE and caught.value.kind not in renewal.REFUSALS
        assert Path(due.file.path).read_bytes() == before
        assert [each.moment for each in dues(node, steps)] == [due.moment]
        use(node)
    finally:
        site.realm.start_kdc()
    tickets(node, steps).renew(due, later())
    assert dues(node, steps)[0].end > due.end


def test_ticket_that_ends_soon_is_used_while_no_kdc_answers(
    site: Site, node: Config, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal has failed, and so does the upcall's own attempt."""
    use(node)
    (due,) = dues(node, steps)
    good = krb5_library.Ticket.good
    is_service = limits.GOOD_SERVICE_TICKET_SECONDS
    monkeypatch.setattr(
        krb5_library.Ticket, "good", lambda self, *margin: margin == (is_service,) and good(self, *margin)
    )
    site.realm.stop_kdc()
    try:
        use(node, MDS, 0, steps)
        assert any(
            level == "warning" and "using the kept ticket, which ends" in text for level, text in steps
        )
        Path(due.file.path).unlink()
        with pytest.raises(CredentialError) as caught:
            use(node)
        assert caught.value.kind == Kind.KDC_UNREACHABLE
    finally:
        site.realm.start_kdc()


def test_service_that_the_kdc_refuses_keeps_no_other_from_its_renewal(
    site: Site, node: Config, steps: Steps
) -> None:
    use(node, MDS)
    use(node, OSS)
    (due,) = dues(node, steps)
    time.sleep(1.1)
    site.realm.administer("modprinc", "-allow_tix", "lustre_mds/localhost")
    try:
        tickets(node, steps).renew(due, later())
        assert [level for level, _ in steps] == ["info"] and MDS in steps[0][1]
        service, _ = dues(node, steps)
        assert service.services == (MDS,)
        with pytest.raises(Exception, match=MDS) as caught:
            tickets(node, steps).renew(service, later())
        assert caught.value.kind in renewal.REFUSALS  # type: ignore[attr-defined]
    finally:
        site.realm.administer("modprinc", "+allow_tix", "lustre_mds/localhost")
    tickets(node, steps).renew(service, later())
    assert [each.is_tgt for each in dues(node, steps)] == [True]


def test_lock_that_an_upcall_holds(
    site: Site, node: Config, steps: Steps, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOCK_SECONDS", 0.1)
    use(node)
    (due,) = dues(node, steps)
    time.sleep(1.1)
    before = exchanges(site)
    with open(private / ticket_file.LOCKS, "r+b") as locks:
        lock = ticket_file._FLOCK.pack(
            fcntl.F_WRLCK, os.SEEK_SET, ticket_file.lock_place(due.file.path), 1, 0
        )
        fcntl.fcntl(locks, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(CredentialError, match="an upcall holds the lock"):
            tickets(node, steps).renew(due, later())
    assert exchanges(site) == before
    # The upcall has got a new one: that will do.
    tickets(node, steps).renew(due, later())
    tickets(node, steps).renew(due, later())
    assert more(site, before) == (1, 1)


@pytest.mark.parametrize("which", ["TGT", "service"])
def test_damaged_file_is_replaced_at_once(site: Site, node: Config, steps: Steps, which: str) -> None:
    use(node)
    (whole,) = dues(node, steps)
    path = Path(whole.file.path)
    if which == "service":
        path = Path(ticket_file.of_service(node.krb5, whole.origin, MDS).path)
    path.write_bytes(path.read_bytes()[:100])
    due = dues(node, steps)[0]
    assert due.file.path == str(path) and due.moment <= time.time()
    tickets(node, steps).renew(due, later())
    assert [each.is_tgt for each in dues(node, steps)] == [True]
    before = exchanges(site)
    use(node)
    assert exchanges(site) == before


def test_kdc_that_gives_no_later_end_is_not_asked_again_and_again(
    site: Site, node: Config, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one may for a principal that expires soon."""
    use(node)
    (due,) = dues(node, steps)
    kept = due.file.read(krb5_library.new_context())[0].creds
    monkeypatch.setattr(machine, "tgt_from_kdc", lambda *_: kept)
    with pytest.raises(CredentialError, match="no ticket that ends later"):
        tickets(node, steps).renew(due, later())
    assert [each.moment for each in dues(node, steps)] == [due.moment]


def test_services_follow_a_new_tgt_in_roots_cache(
    site: Site, node: Config, steps: Steps, root_cache: Path, keytab: Callable[..., Path]
) -> None:
    path = keytab("host/localhost")
    kinit(site, path, "host/localhost", root_cache)
    use(node)
    assert dues(node, steps) == []  # the TGT is not ours to renew
    time.sleep(1.1)
    kinit(site, path, "host/localhost", root_cache)
    (due,) = dues(node, steps)
    assert not due.is_tgt and due.origin == ("cache", "host/localhost@LGSS.TEST")
    tickets(node, steps).renew(due, later())
    assert dues(node, steps) == []

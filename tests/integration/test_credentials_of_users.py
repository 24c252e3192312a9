"""Which credential an upcall takes for a user."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.worker.limits import CACHE_FILES
from tests.support.realm import Realm
from tests.support.requestor import Requestor
from tests.support.site import STRANGER_UID, USER_UID, Site, Upcalls, machine_callout, user_callout

from .answers import established, proven
from .credentials import kinit, messages, with_default_cache
from .failures import failed
from .library import in_user


@pytest.fixture
def elsewhere(site: Site) -> Iterator[Callable[..., Path]]:
    """Put a ticket of alice's into a file of the user's, in /tmp or another folder."""
    made: list[Path] = []

    def put(
        name: str, life: str = "1h", folder: str = "/tmp", uid: int = USER_UID, mode: int = 0o600
    ) -> Path:
        path = Path(folder) / f"{name}.{time.monotonic_ns()}"
        kinit(site, site.population.user_keytab, "alice", path, "-l", life)
        os.chown(path, uid, uid)
        path.chmod(mode)
        made.append(path)
        return path

    site.realm.ccache_of(USER_UID).unlink(missing_ok=True)
    yield put
    for path in made:
        path.unlink(missing_ok=True)


def used(upcalls: Upcalls) -> str:
    return next(e["message"] for e in upcalls.log("; using") if "; using" in e["message"]).rpartition(" ")[2]


def test_cache_in_tmp_where_the_default_one_is_missing(
    site: Site, upcalls: Upcalls, elsewhere: Callable[..., Path]
) -> None:
    path = elsewhere("krb5cc_of_a_login")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    with Requestor(USER_UID) as user:
        proven(site, user.ask(upcalls.name(), user_callout()))
    assert used(upcalls) == str(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_longest_life_wins_and_the_default_cache_before_all(
    site: Site, upcalls: Upcalls, elsewhere: Callable[..., Path]
) -> None:
    folder = Path(f"/run/user/{USER_UID}")
    folder.mkdir(parents=True)
    try:
        elsewhere("a_krb5cc", "1h")
        best = elsewhere("b_krb5cc", "3h", str(folder))
        elsewhere("c_krb5cc", "2h")
        with Requestor(USER_UID) as user:
            established(user.ask(upcalls.name(), user_callout()))
            assert used(upcalls) == str(best)
            site.kinit()
            with site.upcalls() as others:
                established(user.ask(others.name(), user_callout()))
                assert "; using" not in messages(others)
    finally:
        shutil.rmtree(folder)


def test_expired_default_cache(site: Site, upcalls: Upcalls, elsewhere: Callable[..., Path]) -> None:
    site.realm.kinit("alice", USER_UID, USER_UID, lifetime=1)
    path = elsewhere("krb5cc_valid")
    time.sleep(2.1)
    with Requestor(USER_UID) as user:
        established(user.ask(upcalls.name(), user_callout()))
    assert used(upcalls) == str(path)


def test_files_that_are_not_taken(site: Site, upcalls: Upcalls, elsewhere: Callable[..., Path]) -> None:
    """Another's, one that the user may not write, a link, a FIFO, a folder, another name."""
    stamp = time.monotonic_ns()
    extra = [Path(f"/tmp/krb5cc_{kind}.{stamp}") for kind in ("link", "fifo", "folder", "junk")]
    link, fifo, folder, junk = extra
    elsewhere("krb5cc_foreign", uid=STRANGER_UID)
    elsewhere("krb5cc_readonly", mode=0o400)
    elsewhere("ticket")
    try:
        link.symlink_to(elsewhere("linked"))
        os.lchown(link, USER_UID, USER_UID)
        os.mkfifo(fifo)
        folder.mkdir()
        junk.write_bytes(b"\5\4" + os.urandom(5000))
        for path in (fifo, folder, junk):
            os.chown(path, USER_UID, USER_UID)
            path.chmod(0o700)
        with Requestor(USER_UID) as user:
            failed(user.ask(upcalls.name(), user_callout()), upcalls, errno.ENOKEY, "no-ticket", "kinit")
    finally:
        for path in (link, fifo, junk):
            path.unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()


def test_other_caches_of_the_default_collection(site: Site, elsewhere: Callable[..., Path]) -> None:
    folder = site.directory / "collection"
    folder.mkdir()
    os.chown(folder, USER_UID, USER_UID)
    kinit(site, site.population.user_keytab, "alice", folder / "tktsecond")
    os.chown(folder / "tktsecond", USER_UID, USER_UID)
    (folder / "primary").write_text("tktfirst\n")
    os.chown(folder / "primary", USER_UID, USER_UID)
    with site.upcalls(with_default_cache(site, f"DIR:{folder}")) as upcalls, Requestor(USER_UID) as user:
        established(user.ask(upcalls.name(), user_callout()))
        assert "tktsecond" in used(upcalls)
    shutil.rmtree(folder)


def test_cache_of_a_collection_that_fits_the_server(site: Site) -> None:
    """As any program with GSS-API would choose: the primary one is of another realm."""
    folder = site.directory / "two_realms"
    folder.mkdir()
    with Realm("PARTNER.TEST") as partner:
        partner.add_principal("alice")
        partner.extract_keytab(folder / "partner.keytab", "alice")
        command = [
            "kinit",
            "-k",
            "-t",
            str(folder / "partner.keytab"),
            "-c",
            str(folder / "tktprimary"),
            "alice",
        ]
        subprocess.run(command, env={**os.environ, **partner.env}, check=True, capture_output=True)
    kinit(site, site.population.user_keytab, "alice", folder / "tktsecond")
    (folder / "primary").write_text("tktprimary\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, USER_UID, USER_UID)
    settings = with_default_cache(site, f"DIR:{folder}")
    with Path(settings["krb5"]["config"]).open("a") as config:
        config.write(f"\n[domain_realm]\n  localhost = {site.realm.name}\n")
    with site.upcalls(settings) as upcalls, Requestor(USER_UID) as user:
        proven(site, user.ask(upcalls.name(), user_callout()))
        assert "; using" not in messages(upcalls)
    shutil.rmtree(folder)


def test_client_keytab_where_there_is_no_cache(site: Site) -> None:
    """Its ticket is kept nowhere: where the cache would be anybody could have put something."""
    own = site.directory / "client.keytab"
    shutil.copyfile(site.population.user_keytab, own)
    os.chown(own, USER_UID, USER_UID)
    cache = site.directory / "nobodys-cache"
    settings = with_default_cache(site, f"FILE:{cache}")
    path = Path(settings["krb5"]["config"])
    path.write_text(
        path.read_text().replace("[libdefaults]\n", f"[libdefaults]\n  default_client_keytab_name = {own}\n")
    )
    with site.upcalls(settings) as upcalls, Requestor(USER_UID) as user:
        proven(site, user.ask(upcalls.name(), user_callout()))
        assert not cache.exists()
        site.realm.stop_kdc()
        try:
            answer = user.ask(upcalls.name(), user_callout())
            failed(answer, upcalls, errno.EHOSTUNREACH, "kdc-unreachable", limit=10)
        finally:
            site.realm.start_kdc()
    own.unlink()


def test_files_of_others_hide_nothing(site: Site, upcalls: Upcalls, elsewhere: Callable[..., Path]) -> None:
    stamp = time.monotonic_ns()
    crowd = [Path(f"/tmp/krb5cc_{stamp}_{number}") for number in range(CACHE_FILES + 100)]
    folder = Path(f"/run/user/{USER_UID}")
    folder.mkdir(parents=True)
    try:
        for path in crowd:
            path.touch()
            os.chown(path, STRANGER_UID, STRANGER_UID)
        own = elsewhere("krb5cc_login", folder=str(folder))
        with Requestor(USER_UID) as user:
            established(user.ask(upcalls.name(), user_callout()))
        assert used(upcalls) == str(own)
    finally:
        for path in crowd:
            path.unlink(missing_ok=True)
        shutil.rmtree(folder)


def test_link_of_somebody_else_is_not_followed_to_the_default_cache(site: Site, upcalls: Upcalls) -> None:
    """It may lead to this user's file now, and to another by the time libkrb5 opens it."""
    uid = USER_UID + 157
    cache = site.realm.ccache_of(uid)
    cache.unlink(missing_ok=True)
    target = site.directory / "linked-ticket"
    kinit(site, site.population.user_keytab, "alice", target)
    os.chown(target, uid, uid)
    try:
        with Requestor(uid) as user:
            cache.symlink_to(target)
            for owner in (uid, 0):
                os.lchown(cache, owner, owner)
                established(user.ask(upcalls.name(), user_callout(uid)))
            os.lchown(cache, STRANGER_UID, STRANGER_UID)
            answer = user.ask(upcalls.name(), user_callout(uid))
            failed(answer, upcalls, errno.ENOKEY, "cache-unusable", str(STRANGER_UID))
    finally:
        cache.unlink()
        target.unlink()


def test_keyring_cache_of_a_user_is_looked_for_without_making_it(site: Site) -> None:
    """Each would stay and count against the user's quota."""
    name = f"KEYRING:user:lgss-{time.monotonic_ns()}"
    with site.upcalls(with_default_cache(site, name)) as upcalls, Requestor(USER_UID) as user:
        user.run(["keyctl", "link", "@u", "@s"])
        failed(user.ask(upcalls.name(), user_callout()), upcalls, errno.ENOKEY, "no-ticket", name)
        # All keys of this user's are shown to it.
        assert name.rpartition(":")[2] not in in_user(USER_UID, Path("/proc/keys").read_text)


def test_first_cause_is_told_when_there_is_no_other_credential(
    site: Site, root: Requestor, root_cache: Path, keytab: Callable[..., Path]
) -> None:
    """Not that a keytab, which nobody has asked for, is missing."""
    kinit(site, keytab("host/localhost"), "host/localhost", root_cache)
    site.realm.administer("modprinc", "-allow_tgs_req", "lustre_mds/localhost")
    try:
        with site.upcalls({"krb5": {"keytab": "/nonexistent/keytab"}}) as upcalls:
            answer = root.ask(upcalls.name(), machine_callout())
            assert answer.error == 0
            message = upcalls.events(answer.key)[-1]["message"]
            assert "lustre_mds" in message and "/nonexistent" not in message, message
    finally:
        site.realm.administer("modprinc", "+allow_tgs_req", "lustre_mds/localhost")


def test_names_as_they_are(site: Site, user: Requestor) -> None:
    """[names] canonicalize overrides krb5.conf: an alias stays what it is."""
    config = site.directory / "canonical.conf"
    text = Path(site.realm.krb5_conf).read_text().replace("dns_canonicalize_hostname = false", "")
    config.write_text(text.replace("rdns = false", "rdns = true"))
    config.chmod(0o644)
    base: dict[str, dict[str, Any]] = {"krb5": {"config": str(config)}, "hosts": {"127.0.0.1": "127.0.0.1"}}
    with site.upcalls(base) as upcalls:
        # The address becomes localhost again by libkrb5's own look-ups.
        established(user.ask(upcalls.name(), user_callout()))
    with site.upcalls({**base, "names": {"canonicalize": False}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        failed(answer, upcalls, errno.EKEYREJECTED, "service-unknown", "127.0.0.1")

"""Whose ticket is taken: docs/protocol.md 4, with a real KDC, real keytabs and caches."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.worker.limits import CACHE_FILES
from tests.support import keyutils
from tests.support.realm import Realm
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout

from .conftest import keys_of, pace, within
from .failures import failed
from .test_upcall import established, proven

# Not in the virtual machine: tests/vm/test_lustre.py has these cases for type lgssc there.

REALM = "LGSS.TEST"


def initiator(upcalls: Upcalls, answer: Any) -> str:
    established(answer)
    (event,) = [e for e in upcalls.events(answer.key) if e.get("LGSS_STEP") == "updated"]
    return event["LGSS_INITIATOR"].removesuffix(f"@{REALM}")


def messages(upcalls: Upcalls) -> str:
    return "\n".join(event["message"] for event in upcalls.log())


@pytest.fixture
def keytab(site: Site, tmp_path: Path) -> Callable[..., Path]:
    """Make a keytab of these principals, in this order."""

    def make(*principals: str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.keytab"
        for principal in principals:
            site.realm.add_principal(principal)
            site.realm.extract_keytab(path, principal)
        return path

    return make


@pytest.fixture
def root_cache(site: Site) -> Iterator[Path]:
    """The file of root's default cache, not there yet."""
    path = site.realm.ccache_of(0)
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def kinit(site: Site, keytab: Path, principal: str, cache: Path | str, *options: str) -> None:
    command = ["kinit", "-k", "-t", str(keytab), "-c", str(cache), *options, principal]
    subprocess.run(command, env={**os.environ, **site.realm.env}, check=True, capture_output=True)


# The machine.


@pytest.mark.parametrize(
    ("principals", "flags", "taken"),
    [
        (["host/localhost", "lustre_root/localhost"], "r", "host/localhost"),
        (["lustre_mds/localhost", "lustre_root/localhost"], "r", "lustre_root/localhost"),
        (["host/elsewhere", "lustre_root/localhost"], "r", "lustre_root/localhost"),
        (["lustre_role/anything", "host/localhost"], "r", "lustre_role/anything"),
        (["lustre_root"], "r", "lustre_root"),
        (["host/LOCALHOST"], "r", "host/LOCALHOST"),
        (["lustre_oss/localhost", "lustre_mds/localhost"], "m", "lustre_mds/localhost"),
        (["lustre_mds/localhost", "lustre_oss/localhost"], "o", "lustre_oss/localhost"),
        (["lustre_oss/localhost", "lustre_root/localhost"], "rmo", "lustre_oss/localhost"),
        (["lustre_root"], "rmo", None),
        (["lustre_root/elsewhere"], "r", None),
        (["lustre_mgs/localhost"], "rmo", None),
        (["lustre_root/localhost/more"], "r", None),
    ],
)
def test_first_fitting_entry_of_the_keytab(
    site: Site,
    root: Requestor,
    root_cache: Path,
    keytab: Callable[..., Path],
    principals: list[str],
    flags: str,
    taken: str | None,
) -> None:
    path = keytab(*principals)
    with site.upcalls({"krb5": {"keytab": str(path)}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout(flags))
        if taken is None:
            message = failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "/localhost")
            assert principals[0] in message
        else:
            assert initiator(upcalls, answer) == taken


def test_realm_must_be_ours_or_the_rules(site: Site, root: Requestor) -> None:
    with site.upcalls(options="--realm OTHER.TEST") as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "OTHER.TEST")
    with site.upcalls(options=f"-R {REALM}") as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"


def test_principal_and_cache_of_the_configuration(
    site: Site, root: Requestor, keytab: Callable[..., Path], tmp_path: Path
) -> None:
    path = keytab("lustre_root/localhost", "special/name")
    settings = {"krb5": {"keytab": str(path), "principal": "special/name"}}
    with site.upcalls(settings) as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "special/name"
    cache = tmp_path / "cc"
    kinit(site, keytab("host/localhost"), "host/localhost", cache)
    with site.upcalls({"krb5": {"ccache": f"FILE:{cache}"}}) as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "host/localhost"


@pytest.mark.parametrize("principal", ["host/localhost", "lustre_mgs/localhost"])
def test_roots_default_cache_is_used_and_never_written(
    site: Site, root: Requestor, root_cache: Path, keytab: Callable[..., Path], principal: str
) -> None:
    path = keytab("host/localhost") if principal[0] == "h" else site.population.server_keytab
    kinit(site, path, principal, root_cache)
    before = (root_cache.read_bytes(), root_cache.stat().st_mtime_ns)
    with site.upcalls({"krb5": {"keytab": "/nonexistent"}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        assert initiator(upcalls, answer) == principal
        proven(site, answer)
    assert (root_cache.read_bytes(), root_cache.stat().st_mtime_ns) == before


def test_roots_own_tickets_for_something_else_are_left_alone(
    site: Site, root: Requestor, root_cache: Path
) -> None:
    kinit(site, site.population.user_keytab, "alice", root_cache)
    before = root_cache.read_bytes()
    with site.upcalls() as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"
    assert root_cache.read_bytes() == before


def test_ticket_that_is_soon_over_is_not_good(
    site: Site, root: Requestor, root_cache: Path, keytab: Callable[..., Path]
) -> None:
    kinit(site, keytab("host/localhost"), "host/localhost", root_cache, "-l", "4s")
    time.sleep(3.2)  # less than a quarter is left
    with site.upcalls() as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"


@pytest.mark.parametrize("what", ["fifo", "link", "of somebody else", "forged"])
def test_what_others_put_where_roots_cache_would_be(
    site: Site, root: Requestor, root_cache: Path, keytab: Callable[..., Path], what: str
) -> None:
    """/tmp is everybody's: it must neither hang us nor stand in the keytab's way."""
    ticket = site.directory / "planted"
    kinit(site, keytab("host/localhost"), "host/localhost", ticket)
    if what == "fifo":
        os.mkfifo(root_cache)
        os.chown(root_cache, USER_UID, USER_UID)
    elif what == "link":
        root_cache.symlink_to(ticket)
    elif what == "forged":
        # Root's own, and good by its looks: but of a realm with other keys.
        with Realm() as other:
            other.add_principal("host/localhost")
            path = other.extract_keytab(site.directory / "forged.keytab", "host/localhost")
            env = {**os.environ, **other.env}
            command = ["kinit", "-k", "-t", str(path), "-c", str(root_cache), "host/localhost"]
            subprocess.run(command, env=env, check=True, capture_output=True)
            path.unlink()
    else:
        shutil.copyfile(ticket, root_cache)
        os.chown(root_cache, USER_UID, USER_UID)
    with site.upcalls() as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        assert initiator(upcalls, answer) == "lustre_root/localhost"
        proven(site, answer)
    ticket.unlink()


@pytest.mark.parametrize("what", ["fifo", "of somebody else"])
def test_what_others_put_where_a_users_cache_would_be(site: Site, upcalls: Upcalls, what: str) -> None:
    """Else his contexts would be another's."""
    uid = 61391
    cache = site.realm.ccache_of(uid)
    cache.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(cache)
    else:
        kinit(site, site.population.user_keytab, "alice", cache)
        cache.chmod(0o644)
        os.chown(cache, 61392, 61392)
    try:
        with Requestor(uid) as user:
            answer = user.ask(upcalls.name(), user_callout(uid))
            failed(answer, upcalls, errno.ENOKEY, "no-ticket", "is another user's")
    finally:
        cache.unlink()


def test_folder_of_caches_that_another_has_made(site: Site) -> None:
    folder = site.directory / "anybodys"
    folder.mkdir()
    kinit(site, site.population.user_keytab, "alice", folder / "tkt")
    (folder / "tkt").chmod(0o644)
    (folder / "primary").write_text("tkt\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, 61392, 61392)
    uid = 61391
    with site.upcalls(with_default_cache(site, f"DIR:{folder}")) as upcalls, Requestor(uid) as user:
        answer = user.ask(upcalls.name(), user_callout(uid))
        failed(answer, upcalls, errno.ENOKEY, "no-ticket", "is another user's")
    shutil.rmtree(folder)


def as_exchanges(site: Site) -> int:
    log = (site.realm.directory / "kdc.log").read_text()
    return sum("AS_REQ" in line and "ISSUE" in line and "lustre_root" in line for line in log.splitlines())


@pytest.fixture
def private(site: Site) -> Iterator[Path]:
    """The folder of the machine's own tickets, empty."""
    folder = site.directory / "machine"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def cache_in(folder: Path) -> Path:
    (cache,) = [path for path in folder.iterdir() if path.suffix not in (".lock", ".new")]
    return cache


def test_parallel_mounts_make_one_as_exchange(site: Site, upcalls: Upcalls, private: Path) -> None:
    before = as_exchanges(site)
    requestors = [Requestor(0) for _ in range(16)]
    try:
        for one in requestors:
            one.start(upcalls.name(), machine_callout(), wait=pace(20))
        for one in requestors:
            established(one.result())
        assert as_exchanges(site) == before + 1
        established(requestors[0].ask(upcalls.name(), machine_callout()))
        assert as_exchanges(site) == before + 1
    finally:
        for one in requestors:
            one.close()
    cache = cache_in(private)
    assert cache.stat().st_mode & 0o777 == 0o600 and private.stat().st_mode & 0o777 == 0o700
    assert cache.name.startswith("lustre_root_localhost@LGSS.TEST.")


def test_crash_while_the_ticket_was_written(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path
) -> None:
    """What a killed upcall leaves: half a new file, or at worst a broken one; no lock."""
    established(root.ask(upcalls.name(), machine_callout()))
    cache = cache_in(private)
    good = cache.read_bytes()
    cache.with_name(cache.name + ".new").write_bytes(good[:100])
    cache.write_bytes(good[: len(good) // 2])
    established(root.ask(upcalls.name(), machine_callout()))
    assert len(cache.read_bytes()) > 300
    assert sorted(p.suffix for p in private.iterdir() if p != cache) == [".lock"]


def test_lock_that_somebody_keeps_is_not_waited_for(
    site: Site, upcalls: Upcalls, root: Requestor, private: Path
) -> None:
    established(root.ask(upcalls.name(), machine_callout()))
    cache = cache_in(private)
    cache.unlink()
    with open(f"{cache}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        established(root.ask(upcalls.name(), machine_callout(), wait=pace(12)))
        assert 4 < time.monotonic() - started < pace(8)
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
    cache = cache_in(private)
    with Realm() as other:
        population = other.populate("localhost")
        command = ["kinit", "-k", "-t", str(population.machine_keytab), "-c", f"FILE:{cache}"]
        env = {**os.environ, **other.env}
        subprocess.run([*command, "lustre_root/localhost"], env=env, check=True, capture_output=True)
    foreign = cache.read_bytes()
    answer = root.ask(upcalls.name(), machine_callout())
    proven(site, answer)
    assert "getting a new one" in messages(upcalls)
    assert cache.read_bytes() != foreign


def with_default_cache(site: Site, name: str) -> dict[str, dict[str, str]]:
    """Settings whose krb5.conf has another default_ccache_name."""
    config = site.directory / f"krb5-{time.monotonic_ns()}.conf"
    lines = Path(site.realm.krb5_conf).read_text().splitlines()
    lines = [line for line in lines if "default_ccache_name" not in line]
    at = lines.index("[libdefaults]") + 1
    config.write_text("\n".join([*lines[:at], f"  default_ccache_name = {name}", *lines[at:]]))
    config.chmod(0o644)
    return {"krb5": {"config": str(config)}}


def test_requestors_keyrings_are_unlinked_before_the_machine_is_looked_for(
    site: Site, root: Requestor, keytab: Callable[..., Path]
) -> None:
    """Else a fitting ticket in his session would be taken for the machine's."""
    path = keytab("host/localhost")
    settings = with_default_cache(site, "KEYRING:session:lgss")
    config = {"KRB5_CONFIG": settings["krb5"]["config"]}
    root.run(["kinit", "-k", "-t", str(path), "host/localhost"], config)
    with site.upcalls(settings) as upcalls:
        answer = root.ask(upcalls.name(), user_callout(0))
        assert initiator(upcalls, answer) == "host/localhost"
        answer = root.ask(upcalls.name(), machine_callout())
        assert initiator(upcalls, answer) == "lustre_root/localhost"


@pytest.mark.parametrize("kind", ["user", "persistent"])
def test_keyring_cache_is_looked_for_without_making_it(site: Site, root: Requestor, kind: str) -> None:
    name = f"lgss-{time.monotonic_ns()}" if kind == "user" else "0"

    def rings() -> set[str]:
        # What a look-up of libkrb5's would have made.
        lines = Path("/proc/keys").read_text().splitlines()
        return {line.split()[8] for line in lines if " _krb" in line or " _persistent.0:" in line}

    before = rings()
    with site.upcalls(with_default_cache(site, f"KEYRING:{kind}:{name}")) as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"
    assert rings() == before


def test_keyring_cache_of_root_that_is_there_is_used(
    site: Site, root: Requestor, keytab: Callable[..., Path]
) -> None:
    name = f"KEYRING:user:lgss-{time.monotonic_ns()}"
    kinit(site, keytab("host/localhost"), "host/localhost", name)
    try:
        with site.upcalls(with_default_cache(site, name)) as upcalls:
            # Root's user keyring counts as his only where it can be searched.
            root.run(["keyctl", "link", "@u", "@s"])
            assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "host/localhost"
    finally:
        subprocess.run(["kdestroy", "-c", name], env={**os.environ, **site.realm.env}, check=True)
        ring = keyutils.search(keyutils.KEY_SPEC_USER_KEYRING, name.split(":")[2].encode(), 0, b"keyring")
        for each in [ring] if ring else []:
            keyutils.unlink(each, keyutils.KEY_SPEC_USER_KEYRING)
        ring = keyutils.search(
            keyutils.KEY_SPEC_USER_KEYRING, b"_krb_" + name.split(":")[2].encode(), 0, b"keyring"
        )
        if ring:
            keyutils.unlink(ring, keyutils.KEY_SPEC_USER_KEYRING)


# Users.


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
    """Another's, one that he may not write, a link, a FIFO, a folder, another name."""
    stamp = time.monotonic_ns()
    extra = [Path(f"/tmp/krb5cc_{kind}.{stamp}") for kind in ("link", "fifo", "folder", "junk")]
    link, fifo, folder, junk = extra
    elsewhere("krb5cc_foreign", uid=61999)
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
            os.chown(path, 61999, 61999)
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
    uid = 61391
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
            os.lchown(cache, 61392, 61392)
            failed(user.ask(upcalls.name(), user_callout(uid)), upcalls, errno.ENOKEY, "no-ticket", "another")
    finally:
        cache.unlink()
        target.unlink()


def test_keyring_cache_of_a_user_is_looked_for_without_making_it(site: Site) -> None:
    """Each would stay and count against his quota."""
    name = f"KEYRING:user:lgss-{time.monotonic_ns()}"
    with site.upcalls(with_default_cache(site, name)) as upcalls, Requestor(USER_UID) as user:
        user.run(["keyctl", "link", "@u", "@s"])
        before = keys_of(USER_UID)
        failed(user.ask(upcalls.name(), user_callout()), upcalls, errno.ENOKEY, "no-ticket", name)
        assert within(10, lambda: keys_of(USER_UID) <= before)


def test_first_cause_is_told_when_there_is_no_other_credential(
    site: Site, root: Requestor, root_cache: Path, keytab: Callable[..., Path]
) -> None:
    """Not that a keytab, which nobody has asked for, is missing."""
    kinit(site, keytab("host/localhost"), "host/localhost", root_cache)
    site.realm.administer("modprinc", "-allow_svr", "lustre_mds/localhost")
    try:
        with site.upcalls({"krb5": {"keytab": "/nonexistent/keytab"}}) as upcalls:
            answer = root.ask(upcalls.name(), machine_callout())
            assert answer.error == 0
            message = upcalls.events(answer.key)[-1]["message"]
            assert "lustre_mds" in message and "/nonexistent" not in message, message
    finally:
        site.realm.administer("modprinc", "+allow_svr", "lustre_mds/localhost")


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

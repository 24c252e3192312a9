"""A user's cache that kinit cannot mend: the line says whose it is, what is closed, what does not run."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.support.requestor import Requestor
from tests.support.site import STRANGER_UID, USER_UID, Site, Upcalls, user_callout

from .answers import established
from .credentials import kinit, with_default_cache
from .failures import failed

UID = USER_UID + 204


@pytest.fixture
def cache(site: Site) -> Path:
    """The file of the user's default cache, not there yet."""
    path = site.realm.ccache_of(UID)
    path.unlink(missing_ok=True)
    return path


@pytest.mark.parametrize(("owner", "shown"), [(0, "root"), (STRANGER_UID, f"uid {STRANGER_UID}")])
def test_cache_of_somebody_else(site: Site, upcalls: Upcalls, cache: Path, owner: int, shown: str) -> None:
    """As after a kinit with sudo. The user's contexts would be another's."""
    kinit(site, site.population.user_keytab, "alice", cache)
    cache.chmod(0o644)
    os.chown(cache, owner, owner)
    try:
        with Requestor(UID) as user:
            answer = user.ask(upcalls.name(), user_callout(UID))
            words = f"the default cache FILE:{cache} belongs to {shown}, and uid {UID} cannot replace it"
            message = failed(answer, upcalls, errno.ENOKEY, "cache-unusable", words)
            assert f"remove it as root (rm {cache}), then let the user run kinit" in message
    finally:
        cache.unlink()


def test_cache_that_is_no_file(upcalls: Upcalls, cache: Path) -> None:
    os.mkfifo(cache)
    os.chown(cache, UID, UID)
    try:
        with Requestor(UID) as user:
            answer = user.ask(upcalls.name(), user_callout(UID))
            message = failed(answer, upcalls, errno.ENOKEY, "cache-unusable", "is no regular file")
            assert f"remove {cache}" in message
    finally:
        cache.unlink()


def test_folder_of_caches_that_another_has_made(site: Site) -> None:
    folder = site.directory / "anybodys"
    folder.mkdir()
    kinit(site, site.population.user_keytab, "alice", folder / "tkt")
    (folder / "tkt").chmod(0o644)
    (folder / "primary").write_text("tkt\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, STRANGER_UID, STRANGER_UID)
    with site.upcalls(with_default_cache(site, f"DIR:{folder}")) as upcalls, Requestor(UID) as user:
        answer = user.ask(upcalls.name(), user_callout(UID))
        message = failed(answer, upcalls, errno.ENOKEY, "cache-unusable", f"belongs to uid {STRANGER_UID}")
        assert f"(rm -r {folder})" in message
    shutil.rmtree(folder)


def test_cache_in_a_folder_that_is_closed_to_the_user(site: Site) -> None:
    folder = site.directory / "closed"
    folder.mkdir(mode=0o700)
    cache = folder / "below" / "krb5cc"
    cache.parent.mkdir()
    kinit(site, site.population.user_keytab, "alice", cache)
    os.chown(cache, UID, UID)
    with site.upcalls(with_default_cache(site, f"FILE:{cache}")) as upcalls, Requestor(UID) as user:
        answer = user.ask(upcalls.name(), user_callout(UID))
        words = f"the default cache FILE:{cache} cannot be reached: permission denied on folder {folder};"
        message = failed(answer, upcalls, errno.ENOKEY, "cache-unusable", words)
        assert f"open {folder} to uid {UID}" in message and "kinit" not in message
        folder.chmod(0o755)
        cache.parent.chmod(0o755)
        time.sleep(2.1)  # the folder is not in the note of the failure
        established(user.ask(upcalls.name(), user_callout(UID)))
    shutil.rmtree(folder)


def test_server_of_kcm_caches_does_not_run(site: Site) -> None:
    with site.upcalls(with_default_cache(site, "KCM:")) as upcalls, Requestor(UID) as user:
        answer = user.ask(upcalls.name(), user_callout(UID))
        words = "no server for KCM caches is running (default cache: KCM:)"
        message = failed(answer, upcalls, errno.ENOKEY, "cache-unusable", words)
        assert "start sssd-kcm" in message and "default_ccache_name" in message


def test_ticket_that_has_expired_is_described(site: Site, upcalls: Upcalls, cache: Path) -> None:
    site.realm.kinit("alice", UID, UID, lifetime=1)
    ended = time.time() + 1
    time.sleep(2.1)
    try:
        with Requestor(UID) as user:
            answer = user.ask(upcalls.name(), user_callout(UID))
            words = f"the ticket of alice@{site.realm.name} in FILE:{cache} expired at "
            message = failed(answer, upcalls, errno.EKEYEXPIRED, "ticket-expired", words)
        times = [
            time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ended + difference))
            for difference in (-2, -1, 0)
        ]
        assert any(each in message for each in times), (times, message)
        assert "run kinit" in message
    finally:
        cache.unlink()

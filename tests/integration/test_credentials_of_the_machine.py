"""Which credential an upcall takes for the machine, and where it keeps it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import keyutils
from tests.support.realm import Realm
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, machine_callout, user_callout

from .answers import proven
from .credentials import REALM, initiator, kinit, messages, with_default_cache
from .failures import failed


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
        (["lustre_root"], "rmo", "lustre_root"),
        (["host"], "r", "host"),
        (["lustre_role"], "r", None),
        (["lustre_mds"], "m", None),
        (["lustre_root/elsewhere"], "r", None),
        (["lustre_mgs/localhost"], "rmo", None),
        (["lustre_root/localhost/nodemap"], "rmo", "lustre_root/localhost/nodemap"),
        (["lustre_root/localhost/nodemap/more"], "r", None),
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
        message = failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "(realm OTHER.TEST)")
        assert f"set default_realm of krb5.conf to it, or -R {REALM} in the request-key rule" in message
    with site.upcalls(options=f"-R {REALM}") as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"
    with site.upcalls(options="-R lgss.Test") as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"


def test_default_realm_is_not_that_of_the_keytab(site: Site, root: Requestor) -> None:
    config = site.directory / "other-realm.conf"
    text = site.realm.krb5_conf.read_text()
    config.write_text(text.replace(f"default_realm = {REALM}", "default_realm = OTHER.TEST"))
    config.chmod(0o644)
    with site.upcalls({"krb5": {"config": str(config)}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        message = failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", f"the keytab is of realm {REALM}: ")
        assert f"-R {REALM}" in message and "create" not in message


def test_name_of_this_host_is_not_that_of_the_keytab(site: Site, root: Requestor) -> None:
    """The line says where the name comes from: [hosts] here, then the resolver, then uname(2)."""
    with site.upcalls({"hosts": {"127.0.0.1": "wrong.test"}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        message = failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "lustre_root/wrong.test")
        source = f'this host\'s name wrong.test comes from [hosts] of {upcalls.config_file}, by "127.0.0.1"'
        assert "the keytab is for localhost, and" in message and source in message
    node = os.uname().nodename
    with site.upcalls({"hosts": {node: "wrong.test"}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout(self_nid=0))
        message = failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "lustre_root/wrong.test")
        assert f'comes from [hosts] of {upcalls.config_file}, by "{node}"' in message
    with site.upcalls({"names": {"canonicalize": False}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout(self_nid=0))
        message = failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", f"lustre_root/{node}")
        assert f"the host name {node} (uname -n)" in message


def test_folder_of_tickets_is_a_file(site: Site, root: Requestor, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with site.upcalls({"krb5": {"ccache_directory": str(path)}}) as upcalls:
        proven(site, root.ask(upcalls.name(), machine_callout()))
        text = messages(upcalls)
        assert f"no ticket can be kept in {path} ([krb5] ccache_directory): it is no folder" in text
        assert "may write there" not in text


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
        words = f"the ticket of host/localhost@{REALM} in cache FILE:{root_cache} is not used: it ends 20"
        assert words in messages(upcalls)


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


def test_requestors_keyrings_are_unlinked_before_the_machine_is_looked_for(
    site: Site, root: Requestor, keytab: Callable[..., Path]
) -> None:
    """Otherwise a fitting ticket in the user's session would be taken for the machine's."""
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
        # What a look-up of libkrb5's would have made, and no other test or run makes.
        made = {f"_krb_{name}:"} if kind == "user" else {"_persistent.0:", "_krb:"}
        return made & set(Path("/proc/keys").read_text().split())

    before = rings()
    with site.upcalls(with_default_cache(site, f"KEYRING:{kind}:{name}")) as upcalls:
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"
    assert rings() <= before


def test_keyring_cache_of_root_that_is_there_is_used(
    site: Site, root: Requestor, keytab: Callable[..., Path]
) -> None:
    name = f"KEYRING:user:lgss-{time.monotonic_ns()}"
    kinit(site, keytab("host/localhost"), "host/localhost", name)
    try:
        with site.upcalls(with_default_cache(site, name)) as upcalls:
            # Root's user keyring counts as root's only where it can be searched.
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

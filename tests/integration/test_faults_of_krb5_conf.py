"""A krb5.conf that is wrong: the line names the file, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, machine_callout, user_callout

from .answers import established
from .failures import failed


@pytest.fixture
def krb5_conf(site: Site) -> Iterator[Path]:
    """A copy of the site's krb5.conf, for a test to break."""
    folder = site.directory / "krb5"
    folder.mkdir(mode=0o755)
    path = folder / "krb5.conf"
    path.write_text(site.realm.krb5_conf.read_text())
    path.chmod(0o644)
    yield path
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "added",
    ["[libdefaults\n", "[libdefaults]\n nothing\n", "include /nonexistent/more.conf\n"],
    ids=["section", "relation", "include"],
)
def test_mistake_in_krb5_conf(
    site: Site, user: Requestor, root: Requestor, krb5_conf: Path, added: str
) -> None:
    krb5_conf.write_text(krb5_conf.read_text() + added)
    with site.upcalls({"krb5": {"config": str(krb5_conf)}}) as upcalls:
        for answer in (
            user.ask(upcalls.name(), user_callout()),
            root.ask(upcalls.name(), machine_callout()),
        ):
            message = failed(
                answer, upcalls, errno.EINVAL, "krb5-conf", f"cannot use krb5.conf {krb5_conf}: "
            )
            assert f"correct the syntax of {krb5_conf}, or of a file that it includes" in message
            assert "defect" not in message


def test_krb5_conf_of_the_configuration_is_not_there(site: Site, root: Requestor, private: Path) -> None:
    settings = {"krb5": {"config": "/nonexistent/krb5.conf"}}
    uid = USER_UID + 161
    with site.upcalls(settings) as upcalls, Requestor(uid) as stranger:
        for answer in (
            stranger.ask(upcalls.name(), user_callout(uid)),
            root.ask(upcalls.name(), machine_callout()),
        ):
            message = failed(
                answer,
                upcalls,
                errno.EINVAL,
                "krb5-conf",
                "cannot use krb5.conf /nonexistent/krb5.conf: there is no such file",
            )
            assert f"correct [krb5] config (in {upcalls.config_file})" in message


def test_krb5_conf_that_users_may_not_read(site: Site, user: Requestor, krb5_conf: Path) -> None:
    krb5_conf.chmod(0o600)
    with site.upcalls({"krb5": {"config": str(krb5_conf)}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        words = f"uid {USER_UID} may not read {krb5_conf}"
        message = failed(answer, upcalls, errno.EINVAL, "krb5-conf", words)
        assert f"chmod 644 {krb5_conf}" in message
        # The note of this failure does not outlive its cause.
        krb5_conf.chmod(0o644)
        established(user.ask(upcalls.name(), user_callout()))
        krb5_conf.parent.chmod(0o700)
        answer = user.ask(upcalls.name(), user_callout())
        message = failed(answer, upcalls, errno.EINVAL, "krb5-conf", str(krb5_conf))
        assert f"chmod 755 {krb5_conf.parent}:" in message


def test_no_default_realm(site: Site, root: Requestor, krb5_conf: Path) -> None:
    krb5_conf.write_text(krb5_conf.read_text().replace("default_realm", "#"))
    settings = {"krb5": {"config": str(krb5_conf)}}
    with site.upcalls(settings) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        message = failed(answer, upcalls, errno.EINVAL, "krb5-conf", "this machine has no default realm")
        assert "set default_realm in [libdefaults] of krb5.conf, or -R REALM" in message
    with site.upcalls(settings, options=f"-R {site.realm.name}") as upcalls:
        established(root.ask(upcalls.name(), machine_callout()))


def test_principal_of_the_configuration_is_none(site: Site, root: Requestor) -> None:
    with site.upcalls({"krb5": {"principal": "a@b@c"}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        message = failed(answer, upcalls, errno.EINVAL, "config", "[krb5] principal a@b@c is no principal")
        assert f"see {upcalls.config_file}" in message

"""A resident worker sees at each request what is there now: tickets, caches and krb5.conf."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats.config import Config
from lgss_keyring.formats.outcome import Answer
from tests.support.resident import ResidentWorker, arguments, settings_of
from tests.support.site import USER_UID, Site, machine_callout, user_callout

from .credentials import issued, kinit, with_default_cache

WORDS = arguments(user_callout(), USER_UID)
MACHINE = arguments(machine_callout(), 0)


@pytest.fixture
def worker(site: Site) -> Iterator[ResidentWorker]:
    with ResidentWorker(WORDS, settings_of(site)) as worker:
        yield worker
    site.realm.ccache_of(USER_UID).unlink(missing_ok=True)


def initiator(answer: Answer) -> str:
    assert answer.failure is None, answer.failure
    return answer.initiator.partition("@")[0]


def kind(answer: Answer) -> str:
    return answer.failure.kind if answer.failure is not None else ""


def test_kinit_and_kdestroy(site: Site, worker: ResidentWorker) -> None:
    cache = site.realm.ccache_of(USER_UID)
    cache.unlink(missing_ok=True)
    for _ in range(2):
        assert kind(worker.ask(WORDS)) == "no-ticket"
        site.kinit()
        assert initiator(worker.ask(WORDS)) == "alice"
        cache.unlink()
    assert kind(worker.ask(WORDS)) == "no-ticket"


def test_another_principal_in_the_same_cache(site: Site, worker: ResidentWorker, tmp_path: Path) -> None:
    site.kinit()
    assert initiator(worker.ask(WORDS)) == "alice"
    site.realm.add_principal("bob")
    keytab = site.realm.extract_keytab(tmp_path / "bob.keytab", "bob")
    kinit(site, keytab, "bob", site.realm.ccache_of(USER_UID))
    os.chown(site.realm.ccache_of(USER_UID), USER_UID, USER_UID)
    assert initiator(worker.ask(WORDS)) == "bob"


def test_renewed_and_expired(site: Site, worker: ResidentWorker) -> None:
    site.realm.kinit("alice", USER_UID, USER_UID, lifetime=1000)
    first = worker.ask(WORDS)
    site.realm.kinit("alice", USER_UID, USER_UID, lifetime=5000)
    assert 3000 < worker.ask(WORDS).endtime - first.endtime < 5000
    site.realm.kinit("alice", USER_UID, USER_UID, lifetime=1)
    time.sleep(2.1)
    failed = worker.ask(WORDS).failure
    assert failed is not None and failed.kind == "ticket-expired" and "alice" in failed.reason
    site.kinit()
    assert initiator(worker.ask(WORDS)) == "alice"


def test_kswitch(site: Site, tmp_path: Path) -> None:
    folder = site.directory / f"switched-{time.monotonic_ns()}"
    folder.mkdir()
    site.realm.add_principal("bob")
    keytab = site.realm.extract_keytab(tmp_path / "bob.keytab", "bob")
    kinit(site, site.population.user_keytab, "alice", folder / "tktalice")
    kinit(site, keytab, "bob", folder / "tktbob")
    (folder / "primary").write_text("tktalice\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, USER_UID, USER_UID)
    settings = settings_of(site, with_default_cache(site, f"DIR:{folder}"))
    with ResidentWorker(WORDS, settings) as worker:
        for name in ("alice", "bob", "alice"):
            (folder / "primary").write_text(f"tkt{name}\n")
            assert initiator(worker.ask(WORDS)) == name
    shutil.rmtree(folder)


def test_persistent_keyring(site: Site) -> None:
    """Its keyring is linked into the worker's own process keyring, and stays there."""
    settings = with_default_cache(site, "KEYRING:persistent:%{uid}")
    env = {**os.environ, "KRB5_CONFIG": settings["krb5"]["config"]}
    shutil.copyfile(site.population.user_keytab, site.directory / "own.keytab")
    os.chown(site.directory / "own.keytab", USER_UID, USER_UID)
    as_user = ["setpriv", f"--reuid={USER_UID}", f"--regid={USER_UID}", "--clear-groups"]

    def run(*command: str) -> None:
        done = subprocess.run(
            [*as_user, "keyctl", "session", "-", *command], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done

    with ResidentWorker(WORDS, settings_of(site, settings)) as worker:
        for _ in range(2):
            assert kind(worker.ask(WORDS)) == "no-ticket"
            run("kinit", "-k", "-t", str(site.directory / "own.keytab"), "alice")
            assert initiator(worker.ask(WORDS)) == "alice"
            run("kdestroy", "-A")
        assert kind(worker.ask(WORDS)) == "no-ticket"


def conf_of(site: Site) -> tuple[Path, Path, Config]:
    """A krb5.conf with its realm in a file that it includes; and the settings for it."""
    folder = site.directory / f"conf-{time.monotonic_ns()}"
    folder.mkdir(mode=0o755)
    text = site.realm.krb5_conf.read_text()
    main, included = folder / "krb5.conf", folder / "realms"
    head, realms = text[: text.index("[realms]")], text[text.index("[realms]") :]
    main.write_text(f"include {included}\n{head}")
    included.write_text(realms)
    for path in (main, included):
        path.chmod(0o644)
    return main, included, settings_of(site, {"krb5": {"config": str(main)}})


@pytest.mark.parametrize("name", ["main", "included"])
def test_another_krb5_conf(site: Site, name: str) -> None:
    main, included, settings = conf_of(site)
    path = main if name == "main" else included
    text = path.read_text()
    site.kinit()
    with ResidentWorker(WORDS, settings) as worker:
        for _ in range(2):
            assert initiator(worker.ask(WORDS)) == "alice"
            path.write_text(f"{text}\n[libdefaults\n")
            assert kind(worker.ask(WORDS)) == "krb5-conf"
            path.write_text(f"{text}\n[libdefaults]\n default_ccache_name = FILE:/nonexistent/cache\n")
            # Of two such settings libkrb5 takes the first, and the included file comes first.
            assert kind(worker.ask(WORDS)) == ("no-ticket" if name == "included" else "")
            path.write_text(text)
        assert initiator(worker.ask(WORDS)) == "alice"


def test_client_keytab_leaves_nothing_behind(site: Site) -> None:
    own = site.directory / f"client-{time.monotonic_ns()}.keytab"
    shutil.copyfile(site.population.user_keytab, own)
    os.chown(own, USER_UID, USER_UID)
    changed = with_default_cache(site, f"FILE:{site.directory}/nobodys-cache")
    path = Path(changed["krb5"]["config"])
    text = f"[libdefaults]\n  default_client_keytab_name = {own}\n"
    path.write_text(path.read_text().replace("[libdefaults]\n", text))
    with ResidentWorker(WORDS, settings_of(site, changed)) as worker:
        for _ in range(3):
            before = issued(site, "AS_REQ", "alice")
            assert initiator(worker.ask(WORDS)) == "alice"
            assert issued(site, "AS_REQ", "alice") == before + 1
        own.unlink()
        assert kind(worker.ask(WORDS)) == "no-ticket"


def test_machine_without_and_with_its_keytab(site: Site, private: Path, tmp_path: Path) -> None:
    keytab = tmp_path / "machine.keytab"
    with ResidentWorker(MACHINE, settings_of(site, {"krb5": {"keytab": str(keytab)}})) as worker:
        assert os.stat(f"/proc/{worker.pid}").st_uid == 0 and worker.group == (0, True)
        assert kind(worker.ask(MACHINE)) == "keytab-missing"
        shutil.copyfile(site.population.machine_keytab, keytab)
        for _ in range(3):
            assert initiator(worker.ask(MACHINE)).startswith("lustre_root/")
        shutil.rmtree(private)
        keytab.unlink()
        assert kind(worker.ask(MACHINE)) == "keytab-missing"


@pytest.mark.parametrize("words", [WORDS, MACHINE], ids=["user", "machine"])
def test_nothing_is_left_of_many_requests(site: Site, private: Path, words: Any) -> None:
    site.kinit()
    without_address = list(words)
    without_address[4] = words[4].replace("0x200007f000001", "0x200007f000009")
    with ResidentWorker(words, settings_of(site, {"names": {"reverse_dns": False}})) as worker:

        def some(count: int) -> None:
            for _ in range(count):
                # The same number each time, or the most that was needed at once would vary.
                numbers = {worker.begin(words) for _ in range(20)}
                while numbers:
                    number, event = worker.event()
                    if isinstance(event, Answer):
                        assert event.failure is None, event.failure
                        numbers.remove(number)
                assert kind(worker.ask(without_address)) == "no-host-name"

        some(20)
        before = worker.descriptors(), worker.memory()
        some(100)
        assert worker.descriptors() == before[0]
        assert worker.memory() < before[1] * 1.05

"""``make install``: what it puts where, that it works from there and at any moment, and goes again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support import native, runs
from tests.support.installation import Installation, copy_checkout, upcalls_during
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, user_callout
from tests.support.stage import CHECKOUT


@pytest.fixture
def system() -> Iterator[Path]:
    """A folder to install into that a rule may lead to."""
    folder = runs.folder("system")
    yield folder
    runs.remove(folder)


@pytest.mark.parametrize("front", ["C", "Python"])
def test_installed_and_taken_away(site: Site, ticket: int, system: Path, front: str) -> None:
    if front == "C" and not native.has_compiler():
        pytest.skip("no C compiler here")
    installation = Installation(system)
    assert f"with the front in {front} " in installation.install(NATIVE="yes" if front == "C" else "no")
    rule = installation.rule.read_text().splitlines()[-1].split()
    assert rule[:5] == ["create", "lgssc", "*", "*", "/usr/sbin/lgss_keyring"]
    assert rule[5:] == ["%o", "%k", "%t", "%d", "%c", "%u", "%g", "%T", "%P", "%S"]
    # No installation brings the rule for `user` keys.
    assert len(list((system / "etc").rglob("*.conf"))) == 1
    with site.upcalls(program=installation.program) as upcalls, Requestor(USER_UID) as user:
        answer = user.ask(upcalls.name(), user_callout())
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload)
    # All is compiled: a program that compiles itself would write into its folder.
    assert not installation.make("uninstall").returncode
    assert not installation.files()


def test_no_upcall_is_lost_while_others_are_installed(site: Site, ticket: int, system: Path) -> None:
    installation = Installation(system)
    broken = Installation(system, copy_checkout(system / "checkout"))
    (broken.checkout / "lgss_keyring/monitor/upcall.py").write_text("no Python\n")
    installation.install()
    works: list[Callable[[], object]] = [
        installation.install,
        broken.refused,
        installation.install,
        broken.refused,
        installation.install,
    ]
    with site.upcalls({"log": {"level": "info"}}, program=installation.program) as upcalls:
        answers, errors = upcalls_during(upcalls, 100, 10, works)
        assert not errors
        assert len(answers) == 100
        for answer in answers:
            assert not answer.error and not answer.read_error, answer
            assert isinstance(payload.unpack(answer.data), payload.ContextPayload), answer
    # The old ones stay for upcalls that began with them.
    assert len(list(installation.library.glob("0*"))) == 4


def test_upcall_that_began_with_the_old_installation_finds_its_modules(
    site: Site, ticket: int, system: Path
) -> None:
    """The front of the old one is held up while a new one is installed."""
    installation = Installation(system)
    installation.install()
    main = installation.program.resolve().parent / "lgss_keyring/front/main.py"
    gate = system / "gate"
    # Before it loads anything but the first module.
    first = "from lgss_keyring.front import "
    held = f"import time\nwhile os.path.exists({str(gate)!r}): time.sleep(0.01)\n{first}"
    text = main.read_text()
    assert first in text
    main.write_text(text.replace(first, held, 1))
    gate.touch()
    with site.upcalls(program=installation.program) as upcalls, Requestor(USER_UID) as user:
        user.start(upcalls.name(), user_callout(), wait=15.0)
        installation.install()
        assert installation.program.resolve().parent != main.parents[2]
        gate.unlink()
        answer = user.result()
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload), upcalls.log()


def test_request_key_reads_no_rule_that_does_not_end_in_conf(site: Site, ticket: int) -> None:
    """The new rule beside an edited one, and a rule that is being written."""
    with site.upcalls() as upcalls:
        rule = upcalls.rule.path
        names = [rule.with_name(f"{rule.name}.new"), rule.with_name(f".{rule.name}.17")]
        try:
            for name in names:
                shutil.copy(rule, name)
            rule.unlink()
            request = ["keyctl", "request2", "user", upcalls.name(), user_callout(), "@s"]
            done = subprocess.run(["keyctl", "session", "-", *request], capture_output=True, text=True)
        finally:
            for name in names:
                name.unlink()
        assert done.returncode and "Required key not available" in done.stderr, done.stderr
        assert not upcalls.log(seconds=0)


def test_help_names_every_target() -> None:
    done = subprocess.run(["make", "-C", str(CHECKOUT), "help"], capture_output=True, text=True, check=True)
    targets = "setup demo check unit unit-all coverage lint bench wheels install uninstall clean help"
    for target in targets.split():
        assert f"  {target} " in done.stdout

"""A run of demo, bench or tests that is killed leaves a rule: it leads nobody to root, and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.runs import RULE_PREFIX, RULES
from tests.support.stage import CHECKOUT, Rule, TestingError

from .waiting import within

COMMANDS = {
    "demo": ["-m", "tests.support.demo"],
    "bench": ["bench/bench_upcall.py", "--rounds", "1000"],
    "tests": ["-m", "pytest", "-p", "no:cacheprovider", "-x", "tests/integration/test_upcall.py"],
}


class Run:
    """One of them, started, and up to its first rule; its folders are in ``folder``."""

    def __init__(self, name: str, folder: Path, output: Path) -> None:
        environment = {**os.environ, "KEEP": "1", "PYTHONUNBUFFERED": "1", "LGSS_TESTS_FOLDER": str(folder)}
        self.folder = folder
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *COMMANDS[name]],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
            )
        assert within(60, self.rules), output.read_text()

    def rules(self) -> list[Path]:
        return list(RULES.glob(f"{RULE_PREFIX}{self.process.pid}-*.conf"))

    def folders(self) -> list[Path]:
        return list(self.folder.glob(f"*-{self.process.pid}-*"))

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def written(rule: Path) -> str:
    """The rule's line, once it is there."""
    end = time.monotonic() + 5
    while not rule.read_text() and time.monotonic() < end:
        time.sleep(0.01)
    return rule.read_text().splitlines()[-1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For these runs alone: any other would remove what the killed one has left."""
    made = runs.folder("dead")
    yield made / "runs"
    runs.remove(made)


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_run_leads_nobody_to_root_and_the_next_start_is_clean(
    name: str, folder: Path, tmp_path: Path
) -> None:
    killed = Run(name, folder, tmp_path / "killed")
    lines = [written(rule).split() for rule in killed.rules()]
    # Programs and configurations.
    named = [Path(word) for line in lines for word in line[4:] if word.startswith("/")]
    assert named
    killed.end(signal.SIGKILL)
    for path in named:
        assert folder in path.parents
        runs.refuse_writable(path)
        # Nor does what lies beside it lead anywhere else.
        assert not [each for each in path.parent.rglob("*") if each.is_symlink()]
    left = killed.folders()
    assert len(left) >= 3  # realm, site, stage
    following = Run(name, folder, tmp_path / "following")
    assert not killed.rules() and not killed.folders()
    for path in left:
        assert f"removed {path}, which a run that has ended left behind" in following.output.read_text()
    assert following.rules() and following.folders()
    # Ended in an orderly way it cleans up itself.
    following.end(signal.SIGTERM)
    assert not following.rules() and not following.folders(), following.output.read_text()


def test_a_living_run_keeps_what_it_has(tmp_path: Path) -> None:
    ours = runs.folder("test")
    try:
        assert not [line for line in runs.remove_dead() if str(ours) in line]
        assert ours.exists() and not runs.is_dead(ours)
    finally:
        runs.remove(ours)


def test_dead_is_what_no_process_of_that_start_and_boot_has_made() -> None:
    tag = runs.tag()
    pid, start, boot = tag.split("-")
    assert not runs.is_dead(Path(f"lgss-test-{tag}-abc.conf"))
    assert runs.is_dead(Path(f"lgss-test-{pid}-{int(start) + 1}-{boot}-abc.conf"))
    assert runs.is_dead(Path(f"stage-{pid}-{start}-00000000-abc"))
    assert runs.is_dead(Path(f"stage-4194305-{start}-{boot}-abc"))


def test_rule_of_an_older_checkout_is_known_by_its_pattern(tmp_path: Path) -> None:
    rule = tmp_path / "lgss-test-abcdefgh.conf"
    line = "create\tuser\tlgss:{}.5:*\t*\t/tmp/lgss-stage-x/lgss_keyring.py %o %k\n"
    rule.write_text(line.format(os.getpid()))
    assert not runs.is_dead(rule)
    rule.write_text(line.format(4194305))
    assert runs.is_dead(rule)
    rule.write_text("create\tuser\tlgss:*\t*\t/usr/sbin/lgss_keyring %o %k\n")
    assert not runs.is_dead(rule)


def test_no_rule_leads_to_a_program_that_others_could_make_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    with pytest.raises(TestingError, match="/tmp may be written by others"):
        Rule("lgss:none:*", program)

"""`make mutants`: the mistakes that it makes, the sample, the choice of tests, and a run in a copy."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import choice
from tests.mutants.changes import changes, is_program
from tests.mutants.sample import Mutant, again, draw, modules, record
from tests.mutants.trial import Copy, Outcome, Plan, Trial, remove_dead
from tests.support import runs

CHECKOUT = Path(__file__).parents[2]


def results(source: str) -> set[str]:
    """All sources that one change makes of this one."""
    return {change.apply(source) for change in changes(source) if is_program(source, change)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a == b", {"a != b"}),
        ("(a) < (b)", {"(a) <= (b)", "(a) >= (b)"}),
        ("a is  not b", set()),
        ("a is not b", {"a is b"}),
        ("a in b", {"a not in b"}),
        ("a < b <= c", {"a <= b <= c", "a >= b <= c", "a < b < c", "a < b > c"}),
        ("x = a and (b or c)", {"x = a or (b or c)", "x = a and (b and c)"}),
        ("x = not a", {"x = a"}),
        ("x = a + b", {"x = a - b"}),
        ("x = 'a: ' + b", set()),
        (
            "x = 'ä' if b else c",
            {"x = '' if b else c", "x = 'äX' if b else c", "x = 'ä' if (not (b)) else c"},
        ),
        ("x = 2", {"x = 3", "x = 1"}),
        ("x = True", {"x = False"}),
        ("x = 'a text for people'", set()),
        ("x = min(a)", {"x = max(a)"}),
        ("if a: b()", {"if (not (a)): b()", "if a: pass"}),
        ("x = [a for a in b if a]", {"x = [a for a in b if (not (a))]"}),
        ("a.b = c", {"pass"}),
        ("a = c", set()),
        ("a += b", {"pass", "a -= b"}),
        ("def f(): return a", {"def f(): return None"}),
        (
            "def f(): return a < b",
            {"def f(): return a <= b", "def f(): return a >= b", "def f(): return (not (a < b))"},
        ),
        ("if a: raise b", {"if (not (a)): raise b", "if a: pass"}),
        (
            "try: a\nexcept (b, c): pass",
            {"try: a\nexcept b: pass", "try: a\nexcept c: pass", "try: a\nexcept (b, c): raise"},
        ),
        ("def f(a: b | c = 0) -> d | e: ...", {"def f(a: b | c = 1) -> d | e: ..."}),
        ("'''A docstring.'''\nimport a", set()),
        ("assert a == b", set()),
        ("if TYPE_CHECKING:\n    a = 1", set()),
        ("__all__ = ['a']", set()),
    ],
)
def test_changes(source: str, expected: set[str]) -> None:
    assert results(source) == expected


def test_a_change_says_its_line() -> None:
    (change,) = changes("x = (\n    a\n    and b\n)\n")
    assert (change.line, change.text) == (3, "or")


def test_every_module_can_be_changed() -> None:
    """Whatever is drawn, it is a program: Python itself is no test that notices something."""
    for path in modules(CHECKOUT, []):
        source = (CHECKOUT / path).read_text()
        found = changes(source)
        for change in random.Random(0).sample(found, min(3, len(found))):
            compile(change.apply(source), path, "exec")


def test_a_sample_is_the_seeds_and_has_its_part_of_each_module() -> None:
    paths = modules(CHECKOUT, [])
    drawn = draw(CHECKOUT, paths, 100, 7)
    nid = ["lgss_keyring/formats/nid.py"]
    assert draw(CHECKOUT, nid, 9, 7) == draw(CHECKOUT, nid, 9, 7) != draw(CHECKOUT, nid, 9, 8)
    places = [(mutant.path, mutant.change.line) for mutant in drawn]
    assert len(set(places)) == 100 and places == sorted(places)
    rooms = {path.split("/")[1] for path, _ in places}
    assert rooms >= {"daemon", "formats", "front", "monitor", "sptlrpc", "system", "worker"}


def test_survivors_are_found_again_where_they_have_moved(tmp_path: Path) -> None:
    source = "if a:\n    b = 1\n    d()\nif c:\n    b = 1\n"
    module = tmp_path / "lgss_keyring" / "module.py"
    module.parent.mkdir()
    module.write_text(source)
    path = "lgss_keyring/module.py"
    second = [change for change in changes(source) if (change.line, change.text) == (5, "2")]
    records = [record(source, Mutant(path, change)) for change in second]
    module.write_text("import d\n" + source)
    (found,) = again(tmp_path, records)
    assert (found.change.line, found.change.text) == (6, "2")
    module.write_text(source.replace("b = 1", "b = 3"))
    assert again(tmp_path, records) == []
    module.unlink()
    assert again(tmp_path, records) == []


def test_modules_by_their_names() -> None:
    assert modules(CHECKOUT, ["front/pace", "lgss_keyring/front/main.py"]) == [
        "lgss_keyring/front/main.py",
        "lgss_keyring/front/pace.py",
    ]
    assert len(modules(CHECKOUT, ["worker"])) > len(modules(CHECKOUT, ["worker/creds"])) > 3
    with pytest.raises(ValueError, match="no module or folder pace"):
        modules(CHECKOUT, ["pace"])


def test_integration_tests_of_a_module() -> None:
    there = [path.name for path in (CHECKOUT / "tests" / "integration").glob("test_*.py")]
    of_notes = choice.integration("lgss_keyring/front/known_failure.py", [*there, "test_of_tomorrow.py"])
    assert of_notes[0] == "tests/integration/test_known_failures.py"
    assert "tests/integration/test_upcall.py" in of_notes
    assert "tests/integration/test_of_tomorrow.py" in of_notes
    assert "tests/integration/test_sptlrpc.py" not in of_notes


def test_the_table_names_what_is_there() -> None:
    """A module that has moved would be left to the tests of its room without a word."""
    named = {name for row in choice.INTEGRATION.values() for name in row.split()}
    for name in named | set(choice.NOT_ABOUT_THE_PACKAGE.split()):
        assert (CHECKOUT / "tests" / "integration" / f"test_{name}.py").exists(), name
    for row in choice.INTEGRATION:
        path = CHECKOUT / "lgss_keyring" / row
        assert path.is_dir() or path.with_suffix(".py").exists(), row


def test_files_that_can_be_afforded() -> None:
    seconds = {"a::1": 5.0, "a::2": 6.0, "b::1": 20.0, "c::1": 4.0}
    assert choice.affordable(["a", "b", "c"], seconds, 16) == ["a", "c"]
    assert choice.affordable(["b", "c"], seconds, 1) == ["b"]


def test_unit_tests_that_reach_the_line_come_first() -> None:
    seconds = {
        "tests/unit/test_nid.py::a": 0.1,
        "tests/unit/test_log.py::b": 2.0,
        "tests/unit/test_log.py::c": 1.0,
    }
    seconds["tests/unit/test_gss.py::d"] = 0.05
    reached = {"lgss_keyring/formats/nid.py": {"7": ["tests/unit/test_log.py::b"]}}
    tests = choice.unit("lgss_keyring/formats/nid.py", 7, seconds, reached, CHECKOUT)
    assert [name[-1] for name in tests] == ["b", "a", "c"]


# Runs in a copy, of a checkout that has only what they need.

SOURCE = "def value():\n    return 1\n"
TESTS = """
import os, subprocess, sys, time
from lgss_keyring import module

def test_good(): assert module.value() == 1
def test_other(): assert module.value() in (1, 2)
def test_hangs(): module.value() == 3 and time.sleep(60)
def test_leaves_a_process():
    if module.value() == 4:
        command = [sys.executable, "-c", "import time; time.sleep(60)", "left"]
        subprocess.Popen(command, start_new_session=True)
        os._exit(3)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    root = tmp_path / "checkout"
    for folder in ("lgss_keyring", "tests/unit", ".venv", "build"):
        (root / folder).mkdir(parents=True)
    for name in ("lgss_keyring/__init__.py", "tests/__init__.py", "tests/unit/__init__.py", "pyproject.toml"):
        (root / name).touch()
    (root / "lgss_keyring" / "module.py").write_text(SOURCE)
    (root / "tests" / "unit" / "test_module.py").write_text(TESTS)
    made = Copy(root)
    yield made
    made.close()
    assert not made.directory.exists() and not made.temporary.exists()
    assert (root / "lgss_keyring" / "module.py").read_text() == SOURCE


def run(copy: Copy, plan: Plan) -> Outcome:
    trial = Trial(copy, plan)
    while not (outcome := trial.outcome()):
        time.sleep(0.01)
    return outcome


FILE = "tests/unit/test_module.py"


def test_a_run_tests_the_copy_as_it_is_changed(copy: Copy) -> None:
    outcome = run(copy, Plan(["tests/unit"], measure=True, stop=False))
    assert outcome.failed == [] and len(outcome.seconds) == 4, outcome.output
    assert f"{FILE}::test_good" in outcome.reached["lgss_keyring/module.py"]["2"]
    # Of the same length and second: a compiled module could pass for it.
    copy.write("lgss_keyring/module.py", SOURCE.replace("1", "2"))
    outcome = run(copy, Plan([FILE], [f"{FILE}::test_other", f"{FILE}::test_good", f"{FILE}::test_hangs"]))
    assert outcome.failed == [f"{FILE}::test_good"], outcome.output
    assert list(outcome.seconds) == [f"{FILE}::test_other", f"{FILE}::test_good"]


def test_a_test_and_a_run_that_hang(copy: Copy) -> None:
    copy.write("lgss_keyring/module.py", SOURCE.replace("1", "3"))
    hanging = [f"{FILE}::test_hangs"]
    assert run(copy, Plan([FILE], hanging, each=1)).failed == hanging
    assert run(copy, Plan([FILE], hanging, limit=2)).failed == ["the time limit"]


def test_what_a_run_leaves_is_ended(copy: Copy) -> None:
    copy.write("lgss_keyring/module.py", SOURCE.replace("1", "4"))
    outcome = run(copy, Plan([FILE], [f"{FILE}::test_leaves_a_process"]))
    assert outcome.failed == ["pytest's process ended with status 3"]
    left = subprocess.run(["pgrep", "-f", "time.sleep(60).* left"], capture_output=True, text=True).stdout
    own = {int(pid) for pid in left.split() if str(copy.checkout) in environment(int(pid))}
    assert not own


def environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_what_a_killed_measurement_has_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, live = tmp_path / f"lgss-m-{os.getpid()}-1-00000000-x", tmp_path / f"lgss-m-{runs.tag()}-x"
    left.mkdir()
    live.mkdir()
    remove_dead()
    assert not left.exists() and live.exists()


def test_a_module_that_cannot_be_imported_is_noticed(copy: Copy) -> None:
    copy.write("lgss_keyring/module.py", "raise ValueError\n")
    assert run(copy, Plan([FILE])).failed == [FILE]

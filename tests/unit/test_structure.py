"""Sizes of modules, functions and tests; and imports: who may import whom is import-linter's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "lgss_keyring"

MODULE_LINES = 350
FUNCTION_LINES = 50
TEST_LINES = 400

PRODUCT = [*sorted(PACKAGE.rglob("*.py")), CHECKOUT / "lgss_keyring.py", CHECKOUT / "lgssd.py"]
TOOLS = [
    path for folder in ("tests/support", "bench", "examples") for path in (CHECKOUT / folder).glob("*.py")
]
TESTS = [path for path in (CHECKOUT / "tests").rglob("*.py") if path not in TOOLS]


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


# Each is taken off this list by the change that shortens it.
STILL_LONG: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=name(path), marks=[pytest.mark.xfail(strict=True)] if name(path) in STILL_LONG else []
        )
        for path in PRODUCT + TOOLS
    ],
)
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_files_of_tests_have_one_subject(path: Path) -> None:
    assert path.read_text().count("\n") <= TEST_LINES


# Circles.


def modules() -> dict[str, Path]:
    """The package's modules by their names."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def guards_types(node: ast.AST) -> bool:
    """Whether it is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run; with ``types``, those for type checkers alone as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif guards_types(node) and isinstance(node, ast.If):
            for part in node.body if types else []:
                yield from imports(ast.Module([part], []), types)
            for part in node.orelse:
                yield from imports(ast.Module([part], []), types)
        else:
            yield from imports(node, types)


def imported(module: str, path: Path, known: dict[str, Path], types: bool) -> set[str]:
    """Which of the ``known`` modules it imports, at its top or in a function."""
    found = set()
    for node in imports(ast.parse(path.read_text()), types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{module}: imports are absolute"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            found.add(full if full in known else node.module or "")
    return {other for other in found if other in known and other != module}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules each of which imports, through others, all of its set."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reach = {module: reached(module) for module in graph}
    found = [
        {other for other in reach[module] if module in reach[other]}
        for module in graph
        if module in reach[module]
    ]
    return [circle for number, circle in enumerate(found) if circle not in found[:number]]


def graph(types: bool) -> dict[str, set[str]]:
    known = modules()
    return {module: imported(module, path, known, types) for module, path in known.items()}


@pytest.mark.parametrize("types", [False, True], ids=["run", "with those for type checkers"])
def test_no_import_circle(types: bool) -> None:
    assert not circles(graph(types))


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [{"b", "c"}]

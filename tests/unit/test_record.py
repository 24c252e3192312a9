"""Records behave like frozen dataclasses."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys

import pytest

from lgss_keyring.formats.record import Record
from tests.support.stage import CHECKOUT


class Point(Record):
    """Two fields, one with a default."""

    x: int
    y: int = 2


class Named(Point):
    """And one more."""

    name: str = ""


def test_fields_defaults_equality_and_repr() -> None:
    assert Point(1) == Point(1, 2) == Point(x=1, y=2) != Point(1, 3)
    assert Named(1, 2, "n").name == "n" and Named(1) != Point(1)
    assert hash(Point(1)) == hash(Point(1, 2))
    assert repr(Point(1)) == "Point(x=1, y=2)"


def test_frozen() -> None:
    point = Point(1)
    with pytest.raises(AttributeError):
        point.x = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert point.x == 1


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_wrong_arguments(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Point(*args, **kwargs)


def test_help_lists_fields_with_types_and_defaults() -> None:
    assert str(inspect.signature(Named)) == "(x: int, y: int = 2, name: str = '')"
    assert "Named(x: int, y: int = 2, name: str = '')" in pydoc.plain(pydoc.render_doc(Named))


def test_records_import_neither_inspect_nor_typing() -> None:
    """They are used on the path of an upcall, where each costs milliseconds."""
    program = (
        "import sys; before = set(sys.modules); import lgss_keyring.formats.record;"
        "print((set(sys.modules) - before) & {'inspect', 'typing', 're', 'dataclasses'})"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "set()", done.stderr

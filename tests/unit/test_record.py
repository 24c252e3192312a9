"""Records behave like frozen dataclasses."""

from __future__ import annotations

import pytest

from lgss_keyring.formats.record import Record


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

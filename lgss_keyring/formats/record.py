"""Frozen records without the cost of :mod:`dataclasses`.

``dataclasses`` imports ``inspect``, ``re`` and ``copy`` (about 8 ms here), and
``typing.NamedTuple`` needs ``typing`` (2.4 ms).  Each upcall would spend that time before its
answer.  Records need little of that: fields named by annotations, immutability,
equality and a repr.  Type checkers take them for frozen dataclasses, by PEP 681's
``dataclass_transform``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from inspect import Signature
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_options):  # noqa: D103
        return lambda cls: cls


class _FieldsAsSignature:
    """The ``__signature__`` of a record's class, made when somebody asks for it: help(),
    inspect.signature().  Made with the class, it would import ``inspect`` at each upcall."""

    def __get__(self, instance: object, owner: type[Record]) -> Signature:
        import inspect
        import typing

        try:
            types = typing.get_type_hints(owner)
        except NameError:  # a type that is imported for type checkers only
            types = {
                name: text
                for cls in owner.__mro__
                for name, text in vars(cls).get("__annotations__", {}).items()
            }
        parameter = inspect.Parameter
        return inspect.Signature(
            [
                parameter(
                    name,
                    parameter.POSITIONAL_OR_KEYWORD,
                    default=getattr(owner, name, parameter.empty),
                    annotation=types[name],
                )
                for name in owner._fields
            ]
        )


@dataclass_transform(frozen_default=True)
class Record:
    """Base of frozen value types; the annotations of the subclass are its fields.

    A class attribute of the field's name is its default.  Positional and keyword
    arguments fill the fields in order.  Raises ``TypeError`` for a missing,
    unknown or repeated field and ``AttributeError`` on any later assignment.
    """

    __signature__ = _FieldsAsSignature()
    _fields: tuple[str, ...] = ()
    _secret: tuple[str, ...] = ()
    """Fields of keys and the like, which no repr may show: what is shown ends up in logs."""

    def __init_subclass__(cls) -> None:
        # Not inspect.get_annotations: inspect alone costs 6 ms.
        own = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063
        cls._fields = cls._fields + own

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields = self._fields
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} fields, {len(args)} given")
        values = dict(zip(fields, args, strict=False))
        for name, value in kwargs.items():
            if name not in fields or name in values:
                raise TypeError(f"{type(self).__name__}: unknown or repeated field {name!r}")
            values[name] = value
        for name in fields:
            if name not in values:
                if not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__}: field {name!r} is missing")
                values[name] = getattr(type(self), name)
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self._fields)))

    def __repr__(self) -> str:
        inner = ", ".join(
            f"{name}=<{len(self.__dict__[name])} bytes>"
            if name in self._secret
            else f"{name}={self.__dict__[name]!r}"
            for name in self._fields
        )
        return f"{type(self).__name__}({inner})"

"""The one-line mistakes that can be made in a source: each is one small change of its text.

A change leaves the rest of the file as it is, so that lines keep their numbers and a diff shows
the mistake and nothing else.  Not changed are annotations, imports, docstrings, assertions (they are
there for mypy), and texts for people, which have a space.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "//",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.BitXor: "&",
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Change(NamedTuple):
    """Characters ``start`` to ``end`` of a source become ``text``; ``line`` is the first one's."""

    line: int
    start: int
    end: int
    text: str
    kind: str

    def apply(self, source: str) -> str:
        """The changed source."""
        return source[: self.start] + self.text + source[self.end :]


def changes(source: str) -> list[Change]:
    """All that are known for a module, in the order of its text; :func:`is_program` judges them."""
    return sorted(set(_Finder(source).of(ast.parse(source))))


def is_program(source: str, change: Change) -> bool:
    """Whether Python compiles the changed source, and to another program.  It takes some
    milliseconds, hence not for all changes."""
    try:
        return ast.dump(compile(change.apply(source), "", "exec", ast.PyCF_ONLY_AST)) != ast.dump(
            ast.parse(source)
        )
    except (SyntaxError, ValueError):
        return False


class _Finder:
    """Goes through one module."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._tokens = [
            (self._starts[token.start[0] - 1] + token.start[1], token.string)
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type in (tokenize.OP, tokenize.NAME)
        ]

    def of(self, node: ast.AST) -> Iterator[Change]:
        """The changes of a node and of all below it."""
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
            return
        if isinstance(node, ast.If) and _is_named(node.test, "TYPE_CHECKING"):
            return
        if isinstance(node, ast.Assign) and any(
            _is_named(target, "__all__", "TYPE_CHECKING") for target in node.targets
        ):
            return
        yield from self._own(node)
        skipped = _not_run(node)
        for child in ast.iter_child_nodes(node):
            if child not in skipped:
                yield from self.of(child)

    def _own(self, node: ast.AST) -> Iterator[Change]:
        if isinstance(node, ast.expr):
            yield from self._of_expression(node)
        elif isinstance(node, ast.stmt):
            yield from self._of_statement(node)
        elif isinstance(node, ast.ExceptHandler):
            yield from self._of_handler(node)
        elif isinstance(node, ast.comprehension):
            for condition in node.ifs:
                yield self._inverted(condition)

    def _of_expression(self, node: ast.expr) -> Iterator[Change]:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for (left, right), operator in zip(pairwise(operands), node.ops, strict=True):
                for text in COMPARISONS[type(operator)]:
                    yield from self._operator(left, right, text, "comparison")
        elif isinstance(node, ast.BoolOp):
            text = "or" if isinstance(node.op, ast.And) else "and"
            for left, right in pairwise(node.values):
                yield from self._operator(left, right, text, "boolean operator")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            start = self._start(node)
            yield Change(node.lineno, start, start + len("not "), "", "inverted condition")
        elif isinstance(node, ast.BinOp):
            if type(node.op) in OPERATORS and not (_is_text(node.left) or _is_text(node.right)):
                yield from self._operator(node.left, node.right, OPERATORS[type(node.op)], "operator")
        elif isinstance(node, ast.IfExp):
            yield self._inverted(node.test)
        elif isinstance(node, ast.Constant):
            for text in _other_constants(node.value):
                yield self._replaced(node, text, "constant")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield self._replaced(node.func, CALLS[node.func.id], "operator")

    def _of_statement(self, node: ast.stmt) -> Iterator[Change]:
        if isinstance(node, ast.If | ast.While):
            yield self._inverted(node.test)
        elif isinstance(node, ast.AugAssign):
            yield self._replaced(node, "pass", "removed statement")
            if type(node.op) in OPERATORS and not _is_text(node.value):
                yield from self._operator(node.target, node.value, OPERATORS[type(node.op)] + "=", "operator")
        elif isinstance(node, ast.Raise):
            yield self._replaced(node, "pass", "exception swallowed")
        elif _has_effect(node):
            yield self._replaced(node, "pass", "removed statement")
        elif isinstance(node, ast.Return):
            yield from self._of_return(node)

    def _of_return(self, node: ast.Return) -> Iterator[Change]:
        value = node.value
        if value is None:
            yield self._replaced(node, "pass", "removed statement")
        elif isinstance(value, ast.Compare | ast.BoolOp):
            yield self._inverted(value, "return value")
        elif not isinstance(value, ast.Constant):
            yield self._replaced(value, "None", "return value")

    def _of_handler(self, node: ast.ExceptHandler) -> Iterator[Change]:
        if isinstance(node.type, ast.Tuple):
            for left_out in node.type.elts:
                rest = [ast.unparse(each) for each in node.type.elts if each is not left_out]
                text = rest[0] if len(rest) == 1 else f"({', '.join(rest)})"
                yield self._replaced(node.type, text, "exception not caught")
        if not isinstance(node.body[0], ast.Raise):
            yield self._replaced(node.body[0], "raise", "exception not caught")

    def _inverted(self, node: ast.expr, kind: str = "inverted condition") -> Change:
        start, end = self._start(node), self._end(node)
        return Change(node.lineno, start, end, f"(not ({self._source[start:end]}))", kind)

    def _replaced(self, node: ast.expr | ast.stmt, text: str, kind: str) -> Change:
        return Change(node.lineno, self._start(node), self._end(node), text, kind)

    def _operator(self, left: ast.expr, right: ast.expr, text: str, kind: str) -> Iterator[Change]:
        """The operator between two operands, whose brackets are no part of them."""
        start, end = self._end(left), self._start(right)
        within = [(at, word) for at, word in self._tokens if start <= at < end and word not in "()"]
        # `not in` and `is not` are two.
        first, (last, word) = within[0][0], within[-1]
        if self._source[first : last + len(word)] == " ".join(word for _, word in within):
            yield Change(self._source.count("\n", 0, first) + 1, first, last + len(word), text, kind)

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._offset(node.lineno, node.col_offset)

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        """Of a place that ast names by bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())


def _not_run(node: ast.AST) -> set[ast.AST]:
    """The children that are annotations or a docstring; also what a bare text is."""
    found: set[ast.AST | None] = {getattr(node, "annotation", None), getattr(node, "returns", None)}
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        found.add(node.value)
    return {each for each in found if each is not None}


def _is_named(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _is_kept(target: ast.expr) -> bool:
    """Whether it is more than a local name: without that, the next line would fail."""
    return any(isinstance(each, ast.Attribute | ast.Subscript) for each in ast.walk(target))


def _has_effect(node: ast.stmt) -> bool:
    """Whether it can be left out, and the code after it still runs."""
    if isinstance(node, ast.Assign):
        return any(map(_is_kept, node.targets))
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return isinstance(node, ast.Delete | ast.Break | ast.Continue)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _other_constants(value: object) -> Iterable[str]:
    if isinstance(value, bool):
        return [repr(not value)]
    if isinstance(value, int):
        return [str(value + 1), str(value - 1)] if value > 0 else [str(value + 1)]
    if isinstance(value, float):
        return [repr(value * 2), repr(value / 2)] if value else ["1.0"]
    if isinstance(value, str):
        return [] if " " in value else [repr(f"{value}X")] if not value else ["''", repr(value + "X")]
    if isinstance(value, bytes):
        return ["b'X'"] if not value else ["b''", repr(value + b"X")]
    return []

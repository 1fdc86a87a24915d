"""The small changes that a mutant is made of, on the syntax tree. Each is a mistake that a person could make."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants"]

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_EXTREMES = {"min": "max", "max": "min"}
# What is shown to a person decides nothing. An AssertionError stands where nobody is to come.
_SHOWN = {"__repr__", "__str__"}
_LOGGERS = {"_log", "warnings"}


@dataclass
class Mutant:
    """One change of a tree.

    Attributes:
        line: Of the source.
        change: What was there and what is there instead.
    """

    line: int
    change: str
    _parent: ast.AST
    _field: str
    _index: int | None
    _new: ast.AST | list[ast.stmt]

    def apply(self) -> None:
        """Change the tree that the mutant was found in."""
        if self._index is None:
            setattr(self._parent, self._field, self._new)
        else:
            getattr(self._parent, self._field)[self._index] = self._new


def mutants(tree: ast.AST) -> Iterator[Mutant]:
    """Find all mutants of the functions of a tree, in the same order each time.

    Args:
        tree: Of a module. At most one of the mutants is to be applied to it.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name not in _SHOWN:
                yield from _within(node)
        elif isinstance(node, ast.ClassDef):
            yield from mutants(node)


def _within(parent: ast.AST) -> Iterator[Mutant]:
    for field, value in ast.iter_fields(parent):
        if field in {"annotation", "returns", "decorator_list"}:
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _is_apart(node):
                continue
            for new in _replacements(node):
                change = f"{_told(node)} -> {_told(new)}"
                yield Mutant(getattr(node, "lineno", 0), change, parent, field, index, new)
            if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Pass):
                change = f"except {_told(node.type)}: {_told(node.body[0])} -> pass"
                yield Mutant(node.lineno, change, node, "body", None, [ast.Pass()])
            if not isinstance(node, ast.Raise):  # its text; that it is dropped is a mutant already
                yield from _within(node)


def _is_apart(node: ast.AST) -> bool:
    """Whether a node decides nothing: text, log lines, what only the type checker sees, what cannot happen."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        return isinstance(function, ast.Attribute) and _told(function.value) in _LOGGERS
    if isinstance(node, ast.Raise):
        return _told(node.exc).startswith("AssertionError")
    is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in _told(node.test)
    return is_for_types or isinstance(node, (ast.JoinedStr, ast.Assert))


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of a node; it is left as it is."""
    yield from _other_statements(node) if isinstance(node, ast.stmt) else _other_expressions(node)


def _other_statements(node: ast.stmt) -> Iterator[ast.AST]:
    match node:
        case ast.Return(value) if value is not None and _told(value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Continue() | ast.Break() | ast.Assign([ast.Attribute()]):
            yield ast.Pass()
        case ast.AugAssign(target, ast.Add() | ast.Sub() as operator, value) if not _is_text(value):
            yield ast.AugAssign(target, ast.Add() if isinstance(operator, ast.Sub) else ast.Sub(), value)
            if isinstance(target, ast.Attribute):
                yield ast.Pass()
        case ast.AnnAssign(ast.Attribute(), _, value) if value is not None:
            yield ast.Pass()


def _other_expressions(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, operators, right):
            for index, operator in enumerate(operators):
                swapped = [*operators[:index], _COMPARISONS[type(operator)](), *operators[index + 1 :]]
                yield ast.Compare(left, swapped, right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.And() if isinstance(operator, ast.Or) else ast.Or(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, ast.Add() | ast.Sub() as operator, right) if not _is_text(left) and not _is_text(right):
            yield ast.BinOp(left, ast.Add() if isinstance(operator, ast.Sub) else ast.Sub(), right)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Call(ast.Name(name), arguments, keywords) if name in _EXTREMES:
            yield ast.Call(ast.Name(_EXTREMES[name], ast.Load()), arguments, keywords)
        case ast.Slice(lower, upper, step) if step is None:
            if upper is not None:
                yield ast.Slice(lower, ast.BinOp(upper, ast.Sub(), ast.Constant(1)))
            if lower is not None or upper is None:
                later = ast.Constant(1) if lower is None else ast.BinOp(lower, ast.Add(), ast.Constant(1))
                yield ast.Slice(later, upper)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _told(node: ast.AST | None) -> str:
    """Return source on one line."""
    return "" if node is None else " ".join(ast.unparse(node).split())

"""The mutation tool: which changes it makes, and where."""

from __future__ import annotations

import ast

import pytest

from .modules import files_of
from .operators import mutants


def changed(source: str) -> list[str]:
    """Return the statements of a function after each of the changes that are possible in them."""
    results = []
    for number in range(len(list(mutants(ast.parse(function(source)))))):
        tree = ast.parse(function(source))
        list(mutants(tree))[number].apply()
        body = ast.unparse(ast.fix_missing_locations(tree)).splitlines()[1:]
        results.append("\n".join(line.removeprefix("    ") for line in body))
    return results


def function(body: str) -> str:
    """Return a function of these statements."""
    return "def function():\n" + "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", ["a <= b"]),
        ("a <= b < c", ["a < b < c", "a <= b <= c"]),
        ("a == b", ["a != b"]),
        ("a is not b", ["a is b"]),
        ("a not in b", ["a in b"]),
        ("a and b and c", ["a or b or c"]),
        ("a or b", ["a and b"]),
        ("not a", ["a"]),
        ("a + b", ["a - b"]),
        ("a - b", ["a + b"]),
        ("a += b", ["a -= b"]),
        ("a = 5", ["a = 6"]),
        ("a = True", ["a = False"]),
        ("return a", ["return None"]),
        ("return None", []),
        ("return", []),
        ("a(b)", ["pass"]),
        ("a.b = c", ["pass"]),
        ("a.b: int = c", ["pass"]),
        ("a.b += c", ["a.b -= c", "pass"]),
        ("raise a(1)", ["pass"]),
        ("while a:\n    break", ["while a:\n    pass"]),
        ("for a in b:\n    continue", ["for a in b:\n    pass"]),
        ("a = min(b, c)", ["a = max(b, c)"]),
        ("a[b:c]", ["a[b:c - 1]", "a[b + 1:c]"]),
        ("a[:c]", ["a[:c - 1]"]),
        ("a[:]", ["a[1:]"]),
        ("try:\n    a\nexcept B:\n    c", ["try:\n    a\nexcept B:\n    pass"]),
    ],
)
def test_changes(source: str, expected: list[str]):
    """Each operator makes its one change, and leaves everything else alone."""
    assert changed(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""Text."""',
        "_log.warning(a, 1)",
        "raise AssertionError(a + b)",
        "a = f'{b + 1}'",
        "a = 'b' + c",
        "a: Literal[1]",
        "assert a == b",
        "if TYPE_CHECKING:\n    a = 1",
        "try:\n    a\nexcept B:\n    pass",
    ],
)
def test_what_is_left_alone(source: str):
    """What a person reads, what the type checker reads, and what cannot happen is no mutant."""
    assert changed(source) == []


def test_where_mutants_are_found():
    """In functions and methods, but not where objects describe themselves, and not outside of functions."""
    source = "a = 1\nclass B:\n    c = 1\n    def __repr__(self): return d\n    def e(self, f=1): g()\n"
    found = [(mutant.line, mutant.change) for mutant in mutants(ast.parse(source))]
    assert found == [(5, "1 -> 2"), (5, "g() -> pass")]


def test_tests_of_a_module():
    """The table tells which tests meet a module first; without a line it is the file of the same name."""
    assert files_of("_transfer/loop.py") == ["tests/_transfer/test_engine.py", "tests/_transfer/test_hedging.py"]
    assert files_of("datasets/map.py") == ["tests/datasets/test_map.py"]

"""The mutation tool: which changes it makes, where, and which tests these meet."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .__main__ import every_mutant
from .modules import files_of, wider_files
from .operators import mutants
from .reach import Watched, reaching


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


def test_tests_of_all_modules():
    """The files that the table names are there, and a module without a line has a file of its name."""
    root = Path(__file__).parents[2]
    for module in {mutant.module for mutant in every_mutant(root / "src" / "s3torch")}:
        missing = [path for path in (*files_of(module), *wider_files(module)) if not (root / path).is_file()]
        assert not missing, module


SOURCE = """
class A:
    @property
    def b(self):
        def c():
            return 1
        return c

    def d(self):
        return [e for e in f()]

def f():
    return 2
"""


@pytest.mark.parametrize(
    ("line", "names"),
    [(3, ["quick", "slow"]), (6, ["quick", "slow"]), (7, ["quick", "slow"]), (10, ["slow"]), (13, [])],
)
def test_tests_that_reach_a_line(line: int, names: list[str]):
    """Those that call its function or one within it, of the right module; the quickest first."""
    tests = [
        Watched("slow", 2.0, frozenset({("m.py", 3), ("m.py", 10)})),
        Watched("quick", 1.0, frozenset({("m.py", 5)})),
        Watched("other module", 0.5, frozenset({("n.py", 3), ("n.py", 12)})),
    ]
    assert [test.name for test in reaching(tests, "m.py", SOURCE, line)] == names


def test_a_line_outside_of_functions():
    """Such a line has no mutants."""
    with pytest.raises(ValueError, match="line 2 is in no function"):
        reaching([], "m.py", SOURCE, 2)


TESTS = """
import os, threading, time
from library import one, two

def test_one():
    one()

def test_thread():
    thread = threading.Thread(target=two)
    thread.start()
    thread.join()

def test_fork():
    child = os.fork()
    if not child:
        two()
        os._exit(0)
    os.waitpid(child, 0)

def test_failing():
    assert one() is two()

def test_hanging():
    time.sleep(600)
"""


def run_watched(folder: Path, script: str) -> str:
    """Run the tests above under a plugin; returns what was printed."""
    (folder / "library.py").write_text("def one():\n    pass\n\ndef two():\n    return 2\n")
    (folder / "test_library.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    before = """if True:
        import json, os, sys
        from pathlib import Path
        import pytest
        from tests.mutation.reach import Recorder, Selection, Watched
        folder = Path(sys.argv[1])
        def run(plugin, *options):
            return pytest.main([*options, "-xpno:cacheprovider", f"--rootdir={folder}", str(folder)], [plugin])
    """
    command = [sys.executable, "-c", before + script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False).stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_what_is_recorded(tmp_path: Path):
    """The functions that each test calls, in its threads and forks, too, and the tests that fail."""
    script = """
        recorder = Recorder(folder, folder / "notes")
        run(recorder, "-k", "not hanging")
        print(json.dumps([sorted(recorder.failed), {test.name: sorted(test.called) for test in recorder.tests}]))
    """
    failed, called = json.loads(run_watched(tmp_path, script).splitlines()[-1])
    assert failed == ["test_library.py::test_failing"]
    library = {
        name.partition("::")[2]: [line for path, line in at if path == "library.py"] for name, at in called.items()
    }
    assert library == {"test_one": [1], "test_thread": [4], "test_fork": [4], "test_failing": [1, 4]}


def test_what_is_selected(tmp_path: Path):
    """The named tests run, in that order; the file names the last that began, and one without an end is ended."""
    script = """
        names = ["test_thread", "test_one", "test_hanging", "test_failing"]
        tests = [Watched(f"test_library.py::{name}", 0, frozenset()) for name in names]
        run(Selection(tests, [60, 60, 0.5, 60], os.dup(1), folder / "current"), "-v")
        print("not reached")
    """
    printed = run_watched(tmp_path, script)
    assert (tmp_path / "current").read_text() == "test_library.py::test_hanging"
    assert printed.index("test_thread PASSED") < printed.index("test_one PASSED") < printed.index("Timeout (")
    assert "test_failing" not in printed
    assert "not reached" not in printed

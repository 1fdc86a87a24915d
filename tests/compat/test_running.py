"""Tests of ``python -m s3torch.compat``: a program sees what it would see if python had run it."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import s3torch
from s3torch.compat.installing import real_version

pytestmark = pytest.mark.skipif(real_version() is not None, reason="s3torchconnector is installed here")

SOURCE = str(Path(s3torch.__file__).parent.parent)
PACKAGES = str(Path(SOURCE, "s3torch", "compat", "packages"))

# What a program can know of how it was started; python alone prints the same, but for one entry of sys.path.
LOOK = """
import __main__, os, sys
print(__name__, __main__.__dict__ is globals(), __file__, __spec__ and __spec__.name, __package__, __cached__)
print(sys.argv, sys.path[0], type(__loader__).__name__)
def main():
    try:
        {}["missing"]
    except KeyError as error:
        raise ValueError("the end") from error
"""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def _python(*arguments: str, cwd: Path, path: str = SOURCE) -> Ended:
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def _compat(*arguments: str, cwd: Path, path: str = SOURCE) -> Ended:
    """Run the command; without its warning, which is its first line."""
    ended = _python("-m", "s3torch.compat", *arguments, cwd=cwd, path=path)
    first, _, rest = ended.err.partition("\n")
    assert "s3torchconnector is s3torch" in first, ended
    return ended._replace(err=rest)


@pytest.mark.parametrize(
    "how", [["folder/program.py"], ["-m", "folder.program"], ["folder"], ["archive.zip"]], ids=" ".join
)
@pytest.mark.parametrize(
    "end", ["main()", "sys.exit(3)", "sys.exit('a text')", "raise KeyboardInterrupt", "import nowhere", "1 +"]
)
def test_runs_as_python_does(tmp_path: Path, how: list[str], end: str):
    """Names, arguments, ``sys.path[0]``, status and traceback are those that python gives."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("program.py", "__main__.py"):
        (folder / name).write_text(f"{LOOK}{end}\n")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(folder / "__main__.py", "__main__.py")
    arguments = [*how, "--replace", "-m", "x", "--", "a b"]
    mine, its = _compat(*arguments, cwd=tmp_path), _python(*arguments, cwd=tmp_path)
    assert (mine.status, mine.out) == (its.status, its.out)
    assert _of_the_program(mine.err) == _of_the_program(its.err)


def _of_the_program(text: str) -> list[str]:
    """Return the lines of a traceback without those of Python's own frozen modules, which run what is no script."""
    return [line for line in text.splitlines() if not line.startswith('  File "<frozen ')]


def test_link_to_a_script(tmp_path: Path):
    """``sys.path[0]`` is the folder that a link leads to, as python has it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "program.py").write_text(LOOK)
    (tmp_path / "link.py").symlink_to(tmp_path / "real" / "program.py")
    assert _compat("link.py", cwd=tmp_path) == _python("link.py", cwd=tmp_path)


_START = """
import multiprocessing, subprocess, sys

def place(queue):
    import s3torchconnectorclient
    queue.put((__name__, s3torchconnectorclient.__file__))

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=place, args=(queue,))
        process.start()
        print(method, *queue.get(timeout=120))
        process.join()
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", "import s3torchconnectorclient as it; print(it.__file__)"], check=True)
"""


@pytest.mark.parametrize("how", [["program.py"], ["-m", "program"]], ids=" ".join)
def test_processes_of_the_program(tmp_path: Path, how: list[str]):
    """Workers of each start method, and programs that the program starts, find the same packages."""
    (tmp_path / "program.py").write_text(_START)
    ended = _compat(*how, cwd=tmp_path)
    place = f"{PACKAGES}/s3torchconnectorclient/__init__.py"
    lines = [f"fork __main__ {place}", f"spawn __mp_main__ {place}", f"forkserver __mp_main__ {place}", place]
    assert (ended.status, ended.out.splitlines(), ended.err) == (0, lines, "")


def test_installed_by_the_program(tmp_path: Path):
    """A program that calls install() itself finds the packages in workers of each start method, and warns once."""
    (tmp_path / "program.py").write_text(f"import s3torch.compat\ns3torch.compat.install()\n{_START}")
    ended = _python("program.py", cwd=tmp_path)
    assert [line.split()[0] for line in ended.out.splitlines()[:3]] == ["fork", "spawn", "forkserver"]
    assert ended.out.count(PACKAGES) == 3
    assert ended.err.count("MigrationWarning: ") == 1


def test_programs_of_programs(tmp_path: Path):
    """A program that runs another by this command leaves it the same ``PYTHONPATH``; it is not told again."""
    (tmp_path / "program.py").write_text(
        "import os, subprocess, sys\nprint(os.environ['PYTHONPATH'], flush=True)\nif sys.argv[1:]:\n"
        "    subprocess.run([sys.executable, '-m', 's3torch.compat', *sys.argv[1:]], check=True)\n"
    )
    ended = _compat("program.py", "program.py", "program.py", cwd=tmp_path)
    assert ended.out.splitlines() == [os.pathsep.join([PACKAGES, SOURCE])] * 3
    assert ended.err == ""


def test_warnings_as_errors(tmp_path: Path):
    """``-W error`` is for the program's warnings; ``-W ignore`` is for ours as well."""
    (tmp_path / "program.py").write_text("import warnings; warnings.warn('of the program')")
    ended = _python("-W", "error", "-m", "s3torch.compat", "program.py", cwd=tmp_path)
    assert ended.status == 1
    assert ended.err.startswith("python -m s3torch.compat: s3torchconnector is s3torch ")
    assert ended.err.endswith("UserWarning: of the program\n")
    assert _python("-W", "ignore", "-m", "s3torch.compat", "program.py", cwd=tmp_path) == (0, "", "")


def test_pytest(tmp_path: Path):
    """Tests of a program run by ``-m pytest``, and a failure is pytest's status."""
    (tmp_path / "test_it.py").write_text(
        "import s3torchconnectorclient as it\n\n\ndef test_it():\n    assert it.__version__ == 'other'\n"
    )
    ended = _compat("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", cwd=tmp_path)
    assert ended.status == 1
    assert "AssertionError: assert '1.5.0' == 'other'" in ended.out


def test_compiled_script(tmp_path: Path):
    """A compiled script runs, too."""
    (tmp_path / "program.py").write_text("print('ran', __name__, __annotations__)")
    compiled = py_compile.compile(str(tmp_path / "program.py"), str(tmp_path / "program.pyc"))
    assert _compat(compiled, cwd=tmp_path).out == "ran __main__ {}\n"


@pytest.mark.parametrize("module", ["package.program", "package"])
def test_packages_that_import_it(tmp_path: Path, module: str):
    """A module runs whose package imports s3torchconnector; what that package cannot import is its own error."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import s3torchconnectorclient")
    for name in ("program.py", "__main__.py"):
        (package / name).write_text("print('ran', __name__)")
    assert _compat("-m", module, cwd=tmp_path).out == "ran __main__\n"
    (package / "__init__.py").write_text("import no_such_module")
    ended = _compat("-m", module, cwd=tmp_path)
    assert ended.status == 1
    assert ended.err.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")


def test_beside_the_script(tmp_path: Path):
    """An s3torchconnector that lies beside the script is found, too: nothing is run, or it is replaced."""
    (tmp_path / "s3torchconnectorclient").mkdir()
    (tmp_path / "s3torchconnectorclient" / "__init__.py").write_text("__version__ = 'real'")
    (tmp_path / "folder").mkdir()
    (tmp_path / "program.py").write_text("import s3torchconnectorclient as it; print(it.__version__)")
    refused = _python("-m", "s3torch.compat", str(tmp_path / "program.py"), cwd=tmp_path / "folder")
    assert (refused.status, refused.out) == (2, "")
    assert "of unknown version is installed, and would be hidden" in refused.err
    assert _compat("--replace", str(tmp_path / "program.py"), cwd=tmp_path / "folder").out == "1.5.0\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["folder"], 1, r"can't find '__main__' module in '{0}/folder'"),
        (["nowhere.py"], 2, r"can't open file '{0}/nowhere.py': there is no such file"),
        (["-m", "nowhere.at.all"], 1, "No module named nowhere.at.all"),
        ([], 2, "usage: python -m s3torch.compat [--replace]"),
        (["-m"], 2, "a script or a module is needed"),
        (["--unknown", "program.py"], 2, "unrecognized arguments: --unknown"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], status: int, message: str):
    """What cannot be run is an error that says so, with python's status."""
    (tmp_path / "folder").mkdir()
    ended = _python("-m", "s3torch.compat", *arguments, cwd=tmp_path)
    assert ended.status == status
    assert message.format(tmp_path) in ended.err
    assert "Traceback" not in ended.err


def test_beside_the_real_one(tmp_path: Path):
    """Where s3torchconnector is installed nothing is run, unless it is told to replace it."""
    (tmp_path / "s3torchconnector").mkdir()
    (tmp_path / "s3torchconnector" / "__init__.py").touch()
    (tmp_path / "program.py").write_text("import s3torchconnectorclient as it; print(it.__version__)")
    path = os.pathsep.join([SOURCE, str(tmp_path)])
    refused = _python("-m", "s3torch.compat", "program.py", cwd=tmp_path, path=path)
    assert (refused.status, refused.out) == (2, "")
    assert "'python -m s3torch.compat --replace'" in refused.err
    replaced = _compat("--replace", "program.py", cwd=tmp_path, path=path)
    assert (replaced.status, replaced.out) == (0, "1.5.0\n")


@pytest.mark.soak  # imports all that there is; `make build-check` runs it, too
def test_status(tmp_path: Path):
    """``--status`` runs nothing, and shows what is mapped to what."""
    ended = _python("-m", "s3torch.compat", "--status", "program.py", cwd=tmp_path)
    assert ended.status == 0
    assert "S3StorageReader           s3torch.compat.dcp.S3StorageReader" in ended.out

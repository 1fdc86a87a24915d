"""Runs a program as ``python`` does, after ``install``.

What the program sees is what it would see without: ``__main__``, ``sys.argv``, ``sys.path[0]``, and tracebacks that
begin with its own lines. So multiprocessing finds its main module again. Processes that it starts by themselves, as
torchrun does, find the packages by ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import builtins
import os
import runpy
import sys
import warnings
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from pkgutil import read_code
from types import ModuleType, TracebackType
from typing import Any, NoReturn
from zipfile import is_zipfile

from s3torch.compat.installing import NAMES, PACKAGES, CompatError, MigrationWarning, elsewhere, install, status

__all__ = ["main"]

_USAGE_ERROR = 2  # as python has it, also for a script that it cannot open


def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: Of the command line; None takes those of the process.
    """
    own, program, is_module = _split(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(own)
    if options.status:
        print(status())
        return
    if not program:
        parser.error("a script or a module is needed")
    _set_first(None if is_module else _folder_of(program[0]))
    _install(replace=options.replace)
    if is_module:
        _check_module(program[0])
    os.environ["PYTHONPATH"] = _with_packages(os.environ.get("PYTHONPATH", ""))
    sys.excepthook = _show
    sys.argv[:] = program
    if is_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        _run_path(Path(program[0]))


def _split(arguments: list[str]) -> tuple[list[str], list[str], bool]:
    """Return our options, the program with its arguments, and whether it is a module."""
    for index, argument in enumerate(arguments):
        if argument == "-m":
            return arguments[:index], arguments[index + 1 :], True
        if not argument.startswith("-"):
            return arguments[:index], arguments[index:], False
    return arguments, [], False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s3torch.compat",
        usage="%(prog)s [--replace] (script.py | -m module) args...\n       %(prog)s --status",
        description="Run a program that imports s3torchconnector on s3torch.",
        allow_abbrev=False,
    )
    parser.add_argument("--replace", action="store_true", help="also where s3torchconnector is installed")
    parser.add_argument("--status", action="store_true", help="show what is mapped to what, and run nothing")
    return parser


def _folder_of(name: str) -> str:
    """Return what python puts first in ``sys.path``; ends with the status that it has if there is no such program."""
    path = Path(name)
    if not path.exists():
        _refuse(f"can't open file {str(path.absolute())!r}: there is no such file")
    place = str(path.absolute())
    if path.is_dir() and PathFinder.find_spec("__main__", [place]) is None:
        _refuse(f"can't find '__main__' module in {place!r}", 1)
    return place if path.is_dir() or is_zipfile(path) else str(path.resolve().parent)


def _check_module(name: str) -> None:
    """End with the status that python has for it, if there is no such module. Imports the packages that hold it."""
    try:
        found = find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        found = None
    if found is None:
        _refuse(f"No module named {name}", 1)


def _install(*, replace: bool) -> None:
    """Put our packages behind what python puts first, unless another s3torchconnector lies there."""
    first = [] if _is_safe_path() else sys.path[:1]
    with warnings.catch_warnings(record=True) as caught:
        try:
            install(replace=replace)
        except CompatError as error:
            _refuse(str(error))
        except MigrationWarning as warning:  # ``-W error`` is meant for the program
            _say(str(warning))
    for each in caught:  # without a line, which would be one of ours
        _say(str(each.message))
    if all(PathFinder.find_spec(name, first) is None for name in NAMES):
        sys.path[:] = [*first, str(PACKAGES), *elsewhere()[len(first) :]]


def _with_packages(python_path: str) -> str:
    """Return a ``PYTHONPATH`` that begins with our packages, and has them once."""
    entries = filter(None, python_path.split(os.pathsep))
    return os.pathsep.join([str(PACKAGES), *(entry for entry in entries if entry != str(PACKAGES))])


def _run_path(path: Path) -> None:
    """Run a file as ``python`` does; or a folder, or an archive, with a ``__main__.py``.

    runpy would make ``sys.argv[0]`` and ``__file__`` the same, and python does not.
    """
    place = str(path.absolute())
    module = ModuleType("__main__")
    inside = PathFinder.find_spec("__main__", [place])
    if inside is None:
        with path.open("rb") as file:
            code = read_code(file) or compile(path.read_bytes(), place, "exec", dont_inherit=True)
        vars(module).update(__file__=place, __loader__=SourceFileLoader("__main__", place), __cached__=None)
    else:
        loader: Any = inside.loader
        code = loader.get_code("__main__")
        vars(module).update(__file__=inside.origin, __loader__=loader, __cached__=inside.cached)
        vars(module).update(__spec__=inside, __package__="")
    vars(module).update(__annotations__={}, __builtins__=builtins)
    ours = sys.modules["__main__"]  # lives on while the program stands for it
    sys.modules["__main__"] = module
    exec(code, vars(module))  # noqa: S102  # what this is for
    del ours


def _set_first(folder: str | None) -> None:
    """Have the folder of a script where python puts it, in place of that of ``-m s3torch.compat``; None keeps that."""
    if folder is not None and not _is_safe_path():
        sys.path[:1] = [folder]


def _is_safe_path() -> bool:
    return bool(getattr(sys.flags, "safe_path", False))  # new in 3.11


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show an exception that the program did not catch, from its own lines on."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OURS:
        traceback = traceback.tb_next
    sys.__excepthook__(kind, error.with_traceback(traceback), traceback)


_OURS = (__file__, str(Path(__file__).with_name("__main__.py")), runpy.__file__, "<frozen runpy>")


def _refuse(message: str, exit_status: int = _USAGE_ERROR) -> NoReturn:
    _say(message)
    raise SystemExit(exit_status)


def _say(message: str) -> None:
    print(f"python -m s3torch.compat: {message}", file=sys.stderr)

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
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

from s3torch.compat.installing import PACKAGES, CompatError, install, status

__all__ = ["main"]

_USAGE_ERROR = 2  # as python has it, also for a script that it cannot open


def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: Of the command line; None takes those of the process.
    """
    options = _parser().parse_args(arguments)
    if options.status:
        print(status())
        return
    program = options.module or options.script
    if not program:
        _parser().print_usage(sys.stderr)
        raise SystemExit(_USAGE_ERROR)
    _check_program(program[0], is_module=bool(options.module))
    _install(replace=options.replace)
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.excepthook = _show
    sys.argv[:] = program
    if options.module:
        _run_module(program[0])
    else:
        _run_script(program[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s3torch.compat",
        usage="%(prog)s [--replace] (script.py | -m module) args...\n       %(prog)s --status",
        description="Run a program that imports s3torchconnector on s3torch.",
        allow_abbrev=False,
    )
    parser.add_argument("--replace", action="store_true", help="also where s3torchconnector is installed")
    parser.add_argument("--status", action="store_true", help="show what is mapped to what, and run nothing")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="a module and its arguments, as for python")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a script and its arguments, as for python")
    return parser


def _check_program(name: str, *, is_module: bool) -> None:
    """End with the status that python has for it, if there is no such program."""
    if is_module:
        try:
            found = find_spec(name)
        except ModuleNotFoundError:  # of its package
            found = None
        if found is None:
            _refuse(f"No module named {name}", 1)
    elif not Path(name).exists():
        _refuse(f"can't open file {str(Path(name).absolute())!r}: there is no such file")


def _install(*, replace: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        try:
            install(replace=replace)
        except CompatError as error:
            _refuse(str(error))
    for warning in caught:  # its line is none of the program's
        print(f"python -m s3torch.compat: {warning.message}", file=sys.stderr)


def _run_module(name: str) -> None:
    """Run a module as ``python -m`` does; the folder that this was started in is in ``sys.path`` already."""
    _order_path(None)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_script(name: str) -> None:
    """Run a file as ``python`` does; or a folder, or an archive, with a ``__main__.py``."""
    path = Path(name)
    if path.is_dir() or path.suffix in (".zip", ".pyz"):
        _order_path(None)
        runpy.run_path(name, run_name="__main__")
        return
    _order_path(str(path.resolve().parent))
    place = str(path.absolute())
    loader = SourceFileLoader("__main__", place)
    code = loader.source_to_code(path.read_bytes(), place)
    module = ModuleType("__main__")
    vars(module).update(__file__=place, __loader__=loader, __builtins__=builtins, __cached__=None)
    ours = sys.modules["__main__"]  # lives on while the program stands for it
    sys.modules["__main__"] = module
    exec(code, vars(module))  # noqa: S102  # what this is for
    del ours


def _order_path(first: str | None) -> None:
    """Have what python puts first in ``sys.path`` there, and our packages behind it.

    Args:
        first: The folder of a script, in place of that of ``-m s3torch.compat``; None keeps that.
    """
    entries = [entry for entry in sys.path if entry != str(PACKAGES)]
    if not getattr(sys.flags, "safe_path", False):  # new in 3.11
        entries[:1] = [entries[0] if first is None else first]
    sys.path[:] = [*entries[:1], str(PACKAGES), *entries[1:]]


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show an exception that the program did not catch, from its own lines on."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OURS:
        traceback = traceback.tb_next
    sys.__excepthook__(kind, error.with_traceback(traceback), traceback)


_OURS = (__file__, str(Path(__file__).with_name("__main__.py")), runpy.__file__, "<frozen runpy>")


def _refuse(message: str, exit_status: int = _USAGE_ERROR) -> NoReturn:
    print(f"python -m s3torch.compat: {message}", file=sys.stderr)
    raise SystemExit(exit_status)

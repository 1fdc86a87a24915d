"""``install``: puts the packages that stand for s3torchconnector in front of those that are installed.

They are real packages in a folder of ours, and installing them is one entry of ``sys.path``. multiprocessing hands
``sys.path`` to the processes that it starts, so that workers of each start method, and pickles by module name, find the
same packages without a hook. Nothing is patched, and nothing is imported before the program does so. Beside them lies
their metadata, for programs that ask which version they have; nobody finds it who does not find the packages.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from s3torch._version import __version__
from s3torch.compat.version import __version__ as version_followed
from s3torch.errors import S3Error

__all__ = [
    "NAMES",
    "PACKAGES",
    "CompatError",
    "MigrationWarning",
    "Status",
    "elsewhere",
    "install",
    "real_version",
    "status",
]

PACKAGES = Path(__file__).parent / "packages"

NAMES = ("s3torchconnector", "s3torchconnectorclient")
_PAGE = "docs/migrate.md (https://pypi.org/project/s3torch)"


class CompatError(S3Error):
    """s3torch.compat cannot stand for s3torchconnector here: uninstall it, replace it, or install before its import."""


class MigrationWarning(UserWarning):
    """The program says s3torchconnector, and runs on s3torch."""


@dataclass(frozen=True, slots=True)
class Status:
    """What s3torch.compat does in this process.

    Attributes:
        is_installed: Whether ``import s3torchconnector`` gives s3torch.
        installed_version: Of the real s3torchconnector, if it is installed as well; else None.
        names: What each public name of the packages is, such as ``s3torch.compat.datasets.S3MapDataset``; empty for a
            module that cannot be imported here.
    """

    is_installed: bool
    installed_version: str | None
    names: Mapping[str, Mapping[str, str]]

    def __str__(self) -> str:
        lines = [f"s3torch {__version__} for programs of s3torchconnector {version_followed}: {self._state()}"]
        for module, names in self.names.items():
            lines += ["", module if names else f"{module}: cannot be imported here"]
            width = max(map(len, names), default=0)
            lines += [f"    {name:{width}}  {target}" for name, target in names.items()]
        return "\n".join(lines)

    __repr__ = __str__

    def _state(self) -> str:
        real = "" if self.installed_version is None else f"s3torchconnector {self.installed_version}"
        if self.is_installed:
            return f"installed, and stands before {real}" if real else "installed"
        if real:
            return f"not installed; {real} is, and install(replace=True) stands before it"
        return "not installed; s3torch.compat.install() does that"


def install(*, replace: bool = False) -> None:
    """Let ``import s3torchconnector`` give s3torch, in this process and in those that multiprocessing starts from it.

    To do so again does nothing. The first time warns.

    Args:
        replace: Whether to stand before the real s3torchconnector, if it is installed; it is not touched.

    Raises:
        CompatError: The real one was imported already; or it is installed, and ``replace`` is False.

    Warns:
        MigrationWarning: Says what was done, and where the differences are written down.
    """
    imported = [name for name in NAMES if name in sys.modules and not _is_ours(sys.modules[name])]
    if imported:
        raise CompatError(
            f"{imported[0]} was imported before s3torch.compat.install(), and objects of both do not mix. Import "
            "s3torch.compat and call its install() first, or run the program by 'python -m s3torch.compat'."
        )
    if _is_installed():
        return
    version = real_version()
    if version is not None and not replace:
        raise CompatError(
            f"s3torchconnector {version} is installed, and would be hidden: 'import s3torchconnector' would give "
            "s3torch in this process and in its workers. Nothing was changed. To do it, call "
            "s3torch.compat.install(replace=True) or run 'python -m s3torch.compat --replace'; or uninstall "
            "s3torchconnector."
        )
    sys.path[:] = [str(PACKAGES), *elsewhere()]
    hidden = "" if version is None else f", and hides the installed {version}"
    warnings.warn(
        f"s3torchconnector is s3torch {__version__} from here on{hidden}. What differs: {_PAGE}",
        MigrationWarning,
        stacklevel=2,
    )


def status() -> Status:
    """Return what is mapped to what, and whether that is installed. To look the names up takes an import of torch."""
    packages = sorted(path.parent.relative_to(PACKAGES) for path in PACKAGES.glob("*/**/__init__.py"))
    modules = [".".join(path.parts) for path in packages]
    return Status(_is_installed(), real_version(), {module: _names_of(module) for module in modules})


def elsewhere() -> list[str]:
    """Return ``sys.path`` without our packages."""
    return [entry for entry in sys.path if entry != str(PACKAGES)]


def _is_installed() -> bool:
    found = find_spec(NAMES[0])
    return found is not None and Path(found.origin or "").is_relative_to(PACKAGES)


def _is_ours(module: ModuleType) -> bool:
    return Path(module.__file__ or "").is_relative_to(PACKAGES)


def real_version() -> str | None:
    """Return the version of the real s3torchconnector; None if it is not installed."""
    for found in metadata.distributions(name=NAMES[0], path=elsewhere()):
        return found.version
    is_found = any(PathFinder.find_spec(name, elsewhere()) is not None for name in NAMES)
    return "of unknown version" if is_found else None


def _names_of(module: str) -> dict[str, str]:
    try:
        found = import_module(f"s3torch.compat.packages.{module}")
    except Exception:  # noqa: BLE001  # Lightning is not installed, or broken in its own way
        return {}
    return {name: _place(getattr(found, name)) for name in found.__all__}


def _place(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"

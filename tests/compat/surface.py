"""Writes down the names and signatures of s3torchconnector: ``python -m tests.compat.surface`` where it is installed.

``make compare`` tests that what is written in surface.json is what is installed there.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable
from types import ModuleType

__all__ = ["MODULES", "parameters", "surface"]

MODULES = [
    "s3torchconnector",
    "s3torchconnector._s3bucket_key_data",
    "s3torchconnector._s3client",
    "s3torchconnector._s3client._mock_s3client",
    "s3torchconnector._s3client._s3client",
    "s3torchconnector._s3client.s3client_config",
    "s3torchconnector._s3dataset_common",
    "s3torchconnector._user_agent",
    "s3torchconnector._version",
    "s3torchconnector.dcp",
    "s3torchconnector.dcp.s3_file_system",
    "s3torchconnector.dcp.s3_prefix_strategy",
    "s3torchconnector.s3checkpoint",
    "s3torchconnector.s3iterable_dataset",
    "s3torchconnector.s3map_dataset",
    "s3torchconnector.s3reader",
    "s3torchconnector.s3reader.constructor",
    "s3torchconnector.s3reader.dcp_optimized",
    "s3torchconnector.s3reader.protocol",
    "s3torchconnector.s3reader.ranged",
    "s3torchconnector.s3reader.s3reader",
    "s3torchconnector.s3reader.sequential",
    "s3torchconnector.s3writer",
    "s3torchconnectorclient",
    "s3torchconnectorclient._logger_patch",
    "s3torchconnectorclient._mountpoint_s3_client",
]
_PACKAGES = ("s3torchconnector", "s3torchconnectorclient")


def surface() -> dict[str, dict[str, object]]:
    """Return, for each module, the public names of the packages that can be imported from it.

    Of a class where it is defined: its public methods' parameters. Elsewhere, and of a module: where it is defined. Of
    a constant: its value.
    """
    return {module: _names(module) for module in MODULES}


def _names(name: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for each, value in sorted(vars(importlib.import_module(name)).items()):
        if each.startswith("_") and each != "__version__":
            continue
        if isinstance(value, ModuleType):
            home, written = value.__name__, value.__name__
        elif each == "__version__" or (type(value) is int and not each.startswith("SEEK_")):
            home, written = name, value
        else:
            home = getattr(value, "__module__", "")
            written = _written(value) if home == name else f"{home}.{each}"
        if home.partition(".")[0] in _PACKAGES:
            found[each] = written
    return found


def _written(value: object) -> object:
    return _members(value) if isinstance(value, type) else parameters(value)


def _members(cls: type) -> dict[str, object]:
    public = [name for name in vars(cls) if not name.startswith("_") or name in ("__init__", "__call__")]
    return {name: parameters(inspect.getattr_static(cls, name)) for name in sorted(public)}


def parameters(member: object) -> list[str] | None:
    """Return name, kind and default of each parameter; None of what is no function."""
    function: Callable[..., object] | object = getattr(member, "__func__", member)
    if not inspect.isfunction(function):
        return None
    signature = inspect.signature(function)
    return [
        f"{each.name} {each.kind.name} {'' if each.default is each.empty else _text(each.default)}".strip()
        for each in signature.parameters.values()
    ]


def _text(default: object) -> str:
    return getattr(default, "__name__", None) or repr(default)


if __name__ == "__main__":
    json.dump(surface(), sys.stdout, indent=1, sort_keys=True)
    print()  # noqa: T201  # ends the file

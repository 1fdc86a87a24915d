"""Tests of what s3torch stands on: what it declares, what it imports, and under which licences that may be used.

``make audit`` runs them, and ``pip check``. A database of known weaknesses is not asked: that takes a network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_exports import BENCHMARKS, TREES, imports_of

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

# What an installation brings, and a word of the licence that permits it beside Apache-2.0. What torch stands on is
# left out: it is chosen with torch, and differs by platform. tqdm's MPL-2.0 covers its own files alone.
RUNTIME = {
    "botocore": "Apache",
    "jmespath": "MIT",
    "python-dateutil": "Apache",
    "six": "MIT",
    "torch": "BSD",
    "tqdm": "MIT",
    "typing-extensions": "PSF",
    "urllib3": "MIT",
    "zlib-ng": "PSF",
}
# Packages whose modules have other names.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}
_BESIDE = ("s3torch.testing", "s3torch.demo")


def declared(extra: str | None = None) -> set[str]:
    """Return the packages of pyproject.toml: of an installation, or of an extra and those that it holds."""
    project = pytest.importorskip("tomllib").loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    for line in project["dependencies"] if extra is None else project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == "s3torch":
            found |= {name for each in requirement.extras for name in declared(each)}
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def imported(names: Iterable[str]) -> set[str]:
    """Return the packages that modules import, those of Python and s3torch left out."""
    roots = {each.partition(".")[0] for name in names for each in imports_of(name)}
    return {
        canonicalize_name(_PACKAGES.get(root, root))
        for root in roots - {"s3torch", "benchmarks"}
        if root not in sys.stdlib_module_names
    }


def closure(names: set[str]) -> set[str]:
    """Return packages and all that they need in this environment, but what only torch needs."""
    found: set[str] = set()
    due = set(names)
    while due:
        name = due.pop()
        found.add(name)
        if name != "torch":
            lines = map(Requirement, distribution(name).requires or ())
            needed = {
                canonicalize_name(each.name) for each in lines if not each.marker or each.marker.evaluate({"extra": ""})
            }
            due |= needed - found
    return found


def test_what_is_imported_is_declared():
    """The library imports exactly the packages that it declares; some of them only where they are installed."""
    library = [name for name in TREES if not name.startswith(_BESIDE)]
    of_torch = {"safetensors"}  # torch imports it for files of that format, and so do we, only then
    assert (
        imported(library)
        == declared() | declared("checksums") | declared("parquet") | declared("torch-checkpointing") | of_torch
    )


def test_what_is_imported_beside_it_is_declared():
    """Servers, benchmarks and the demo import nothing but what an extra declares."""
    assert imported([*TREES, *BENCHMARKS]) <= declared() | declared("dev") | declared("bench")


def test_every_dependency_is_known():
    """An installation brings no package that nobody has looked at."""
    assert closure(declared()) <= RUNTIME.keys()


@pytest.mark.parametrize("name", RUNTIME)
def test_licences(name: str):
    """Each package is still under the licence that was looked at."""
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    said = metadata.get_all("Classifier") or []
    said = [metadata.get("License-Expression") or metadata.get("License") or "", *said]
    licences = " ".join(line for line in said if not re.match(r"\w[\w ]*::", line) or line.startswith("License"))
    assert RUNTIME[name] in licences
    assert not re.search(r"\bA?GPL|\bLGPL", licences)

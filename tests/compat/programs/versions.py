"""Prints what a program finds out about the version of s3torchconnector, also in a process that it starts."""

from __future__ import annotations

import json
import multiprocessing
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

NAMES = ["s3torchconnector", "s3torchconnectorclient"]


def fits(line: str) -> bool:
    """Return whether what is installed fits a requirement, and so does what that requires without an extra."""
    requirement = Requirement(line)
    found = metadata.distribution(requirement.name)
    needed = [Requirement(each) for each in found.requires or ()]
    return found.version in requirement.specifier and all(
        fits(str(each)) for each in needed if each.name in NAMES and (not each.marker or each.marker.evaluate())
    )


def versions() -> dict[str, object]:
    """Return what is found."""
    import s3torchconnector
    import s3torchconnectorclient

    return {
        "versions": [metadata.version(name) for name in NAMES],
        "attributes": [s3torchconnector.__version__, s3torchconnectorclient.__version__],
        "at least 1.4": Version(metadata.version("s3torchconnector")) >= Version("1.4"),
        "extras": {"dcp", "lightning"} <= set(metadata.metadata("s3torchconnector").get_all("Provides-Extra") or []),
        "fits": [fits(line) for line in ("s3torchconnector>=1.3,<2", "S3TorchConnector[dcp]==1.5.0")],
        "does not fit": [fits(line) for line in ("s3torchconnector>=2", "s3torchconnectorclient<1.5")],
        "listed": sorted({each.name for each in metadata.distributions() if each.name in NAMES}),
    }


if __name__ == "__main__":
    here = versions()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(versions) == here
    json.dump(here, sys.stdout)

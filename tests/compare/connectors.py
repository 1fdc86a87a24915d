"""The connector that is tested, behind the calls that s3torch and s3torchconnector have in common.

It is s3torch; ``S3TORCH_TEST_CONNECTOR=s3torchconnector`` makes it the other, as ``make compare`` does.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

__all__ = [
    "CONNECTOR",
    "IS_OTHER",
    "Error",
    "checkpoint",
    "close_all",
    "fails_elsewhere",
    "map_dataset",
    "range_based",
    "read_ranges",
]

CONNECTOR = os.environ.get("S3TORCH_TEST_CONNECTOR", "s3torch")
IS_OTHER = CONNECTOR != "s3torch"
module: Any = importlib.import_module(CONNECTOR)
Error: type[Exception] = module.S3Exception if IS_OTHER else module.errors.S3Error
REGION = "us-east-1"
_made: list[Any] = []


def fails_elsewhere(defect: str, failure: type[Exception], match: str) -> pytest.MarkDecorator:
    """Mark a test that the other connector must fail in the given way, and in no other: else the run fails.

    Args:
        defect: What happens there.
        failure: What the test raises there.
        match: What its message says there: a regular expression.
    """
    raises: Any = pytest.RaisesExc(failure, match=match) if IS_OTHER else None
    return pytest.mark.xfail(IS_OTHER, reason=defect, raises=raises, strict=True)


def checkpoint(endpoint: str, *, unsigned: bool = True) -> Any:
    """Return an ``S3Checkpoint``: readers and writers by URI, as the connector gives them by default."""
    return _kept(module.S3Checkpoint(**_options(endpoint, unsigned=unsigned)))


def map_dataset(
    endpoint: str, uris: Sequence[str], transform: Callable[[Any], object], reader: dict[str, object]
) -> Any:
    """Return an ``S3MapDataset`` of objects, or of what begins with the only URI, if that ends with a slash."""
    make = module.S3MapDataset.from_objects
    if len(uris) == 1 and uris[0].endswith("/"):
        make, (uris,) = module.S3MapDataset.from_prefix, uris
    return _kept(make(uris, transform=transform, **_options(endpoint), **reader))


def range_based(buffer_size: int) -> dict[str, object]:
    """Return the argument of a dataset that chooses range-based readers; 0 is without a buffer."""
    if IS_OTHER:
        return {"reader_constructor": module.S3ReaderConstructor.range_based(buffer_size=buffer_size)}
    return {"reader_config": module.S3ReaderConfig.range_based(buffer_size)}


def read_ranges(endpoint: str, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read ranges of one object by what the connector has for loading parts of a checkpoint, gaps left out."""
    if not IS_OTHER:
        client = module.S3Client(**_options(endpoint))
        try:
            found: list[bytes] = client.read_ranges("bucket", key, ranges, max_gap=0)
        finally:
            client.close()
        return found
    # What its S3StorageReader does with the plan of a load.
    constructor = module.S3ReaderConstructor.dcp_optimized(max_gap_size=0)
    items = [SimpleNamespace(storage_index=number) for number in range(len(ranges))]
    places = [SimpleNamespace(relative_path=key, offset=start, length=stop - start) for start, stop in ranges]
    constructor.set_item_ranges_by_file(items, dict(enumerate(places)), "s3://bucket")

    def read(reader: Any) -> list[bytes]:
        return [reader.read(stop - start) for start, stop in ranges if reader.seek(start) == start]

    dataset = map_dataset(endpoint, [f"s3://bucket/{key}"], read, {"reader_constructor": constructor})
    return dataset[0]  # type: ignore[no-any-return]  # what read returns


def close_all() -> None:
    """Close the connections of all that was made since the last time; the other connector closes its own."""
    while _made:
        made = _made.pop()
        if not IS_OTHER:
            made._client.close()


def _kept(made: Any) -> Any:
    _made.append(made)
    return made


def _options(endpoint: str, *, unsigned: bool = True) -> dict[str, object]:
    config = module.S3ClientConfig(unsigned=unsigned, force_path_style=True, max_attempts=3)
    return {"region": REGION, "endpoint": endpoint, "s3client_config": config}

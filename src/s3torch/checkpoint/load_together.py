"""A file of torch.save that all ranks of a group load: each byte is received from S3 once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from s3torch.checkpoint.group_timeout import check_group_timeout
from s3torch.checkpoint.loading import MapLocation, check_map_location, load_opened
from s3torch.checkpoint.ranks import Ranks
from s3torch.checkpoint.shared_file import SharedFile
from s3torch.errors import InvalidURIError
from s3torch.uri import parse_version_uri

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from s3torch.client import S3Client

__all__ = ["load_object_together"]


def load_object_together(
    group: ProcessGroup,
    group_timeout: float,
    client: S3Client,
    uri: str,
    *,
    map_location: MapLocation,
    weights_only: bool,
    progress: bool | None,
) -> Any:  # noqa: ANN401  # whatever was saved
    """Load what ``S3Checkpoint.load`` loads, with its arguments, on all ranks of a group."""

    def prepare() -> tuple[dict[str, str], tuple[str, str, str | None]]:
        bucket, key, version_id = parse_version_uri(uri)
        if not key:
            raise InvalidURIError(f"s3://{bucket} is a bucket and no checkpoint. Write 's3://bucket/key'.")
        check_map_location(map_location)
        arguments = {
            "uri": repr(uri),
            "map_location": _kind_of(map_location),
            "weights_only": repr(weights_only),
            "checksums": client.s3client_config.checksums,
            "max_bytes_in_flight": str(client.s3client_config.bytes_in_flight),  # what is read ahead
            "the version of torch": torch.__version__,
        }
        return arguments, (bucket, key, version_id)

    with Ranks(group, check_group_timeout(group_timeout), f"load of {uri}") as ranks:
        bucket, key, version_id = ranks.meet(prepare)
        file = SharedFile(ranks, client, bucket, key, version_id)
        loaded = load_opened(
            file,
            file.remote,
            file.receive,
            file.read_all,
            map_location=map_location,
            weights_only=weights_only,
            progress=progress,
        )
        ranks.settle()
        return loaded


def _kind_of(location: MapLocation) -> str:
    """Return what must be the same on all ranks, for them to read in the same order: kinds of devices, not numbers."""
    if location is None:
        return "None"
    if isinstance(location, dict):
        return repr(sorted((torch.device(name).type, torch.device(to).type) for name, to in location.items()))
    return torch.device(location).type if isinstance(location, (str, torch.device)) else "a function"

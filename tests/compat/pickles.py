"""Writes down what s3torchconnector pickles: ``python -m tests.compat.pickles`` where it is installed."""

from __future__ import annotations

import base64
import json
import pickle
import sys

__all__ = ["made"]


def made() -> dict[str, object]:
    """Return one object of each class that s3torchconnector can pickle, by what it is."""
    from s3torchconnector import S3Checkpoint, S3ClientConfig, S3Exception, S3IterableDataset, S3MapDataset
    from s3torchconnector import S3ReaderConstructor as Readers
    from s3torchconnector._s3bucket_key_data import S3BucketKeyData
    from s3torchconnector._s3client import S3Client
    from s3torchconnector._user_agent import UserAgent
    from s3torchconnectorclient._mountpoint_s3_client import HeadObjectResult, ObjectInfo, RestoreStatus

    config = S3ClientConfig(part_size=16 * 1024 * 1024, force_path_style=True, profile=None)
    where = {"region": "eu-west-1", "endpoint": "http://127.0.0.1:9", "s3client_config": config}
    info = ObjectInfo("p/a", '"etag"', 3, 1700000000, "STANDARD", RestoreStatus(False, 5))
    ranged = Readers.range_based(buffer_size=0)
    listed = S3MapDataset.from_prefix("s3://bucket/p/", reader_constructor=ranged, **where)
    listed._bucket_key_pairs = [S3BucketKeyData("bucket", "p/a", info), S3BucketKeyData("bucket", "p/b")]
    client = S3Client("eu-west-1", user_agent=UserAgent(["dcp", "1"]), s3client_config=config)
    if hasattr(client, "_client_builder"):
        _ = client._client  # the native client is pickled, too
    return {
        "checkpoint": S3Checkpoint("eu-west-1", "http://127.0.0.1:9", config),
        "client": client,
        "config": config,
        "dcp_optimized": Readers.dcp_optimized(max_gap_size=7),
        "error": S3Exception("Service error: The key does not exist"),
        "head": HeadObjectResult('"etag"', 3, 1700000000, None, None),
        "iterable": S3IterableDataset.from_objects(["s3://bucket/a", "s3://other/b"], enable_sharding=True, **where),
        "listed": listed,
        "map": S3MapDataset.from_prefix("s3://bucket/p/", **where),
        "object_info": info,
        "ranged": ranged,
        "sequential": Readers.sequential(),
    }


if __name__ == "__main__":
    written = {name: base64.b64encode(pickle.dumps(value)).decode() for name, value in made().items()}
    json.dump(written, sys.stdout, indent=1)
    print()  # noqa: T201  # ends the file

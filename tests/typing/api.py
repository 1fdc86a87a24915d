"""The public names as users write them; read by the type checker, never run."""

import io
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_checkpointing.storage.torch_serialization import MmapFill
from typing_extensions import assert_type

from s3torch import (
    ReaderType,
    S3Checkpoint,
    S3Client,
    S3ClientConfig,
    S3IterableDataset,
    S3MapDataset,
    S3Reader,
    S3ReaderConfig,
    S3Writer,
    TransferStats,
)
from s3torch.checkpoint import UploadEstimate, UploadStats
from s3torch.datasets import (
    Manifest,
    Objects,
    ObjectTable,
    Prefix,
    SampleReaders,
    Table,
    by_column,
    by_folder,
    by_stem,
)
from s3torch.dcp import S3HuggingFaceStorageWriter, S3StorageWriter
from s3torch.errors import ObjectNotFoundError, S3Error
from s3torch.lightning import S3LightningCheckpoint
from s3torch.safetensors import estimate_file, estimate_sharded, save_file, save_sharded
from s3torch.testing import ExpressServer, FaultyServer, LocalS3, conformance, faults
from s3torch.torch_checkpointing import S3StorageConfig, clean, native_fill


def decode(reader: S3Reader) -> Tensor:
    return torch.frombuffer(bytearray(reader.read()), dtype=torch.uint8)


def decode_pair(sample: SampleReaders) -> tuple[Tensor, str]:
    return decode(sample[".jpg"]), sample[".txt"].read().decode()


class Labelled(S3MapDataset[Tensor]):
    """A dataset of a user's own."""


def datasets() -> None:
    plain: S3MapDataset[S3Reader] = S3MapDataset.from_prefix("s3://bucket/prefix")
    reader: S3Reader = plain[0]
    tensors: S3MapDataset[Tensor] = S3MapDataset.from_prefix(
        "s3://bucket/prefix", region="eu-west-1", transform=decode, reader_config=S3ReaderConfig.range_based(1024)
    )
    tensor: Tensor = tensors[-1]
    stream: S3IterableDataset[Tensor] = S3IterableDataset.from_objects(
        ["s3://bucket/a", "s3://bucket/b"], transform=decode, enable_sharding=True
    )
    table: ObjectTable = tensors.objects
    table.save("table")
    S3MapDataset.from_prefix("s3://bucket/prefix/", pin_etags=True, table_at=True)
    S3IterableDataset.from_prefix("s3://bucket/prefix", table_at=Path("run.table"), shuffle=True)
    again: S3MapDataset[Tensor] = S3MapDataset.from_table(ObjectTable.load("table"), transform=decode)
    assert_type(S3MapDataset.from_manifest("train.csv", transform=decode), S3MapDataset[Tensor])
    assert_type(S3IterableDataset.from_manifest("s3://bucket/train.jsonl", transform=decode), S3IterableDataset[Tensor])
    stream = S3IterableDataset.from_table("s3://bucket/table", transform=decode, enable_sharding=True)
    print(len(again), table[0].key)
    assert_type(S3MapDataset.from_prefix("s3://bucket/prefix", transform=decode), S3MapDataset[Tensor])
    assert_type(S3IterableDataset.from_table("table", transform=decode), S3IterableDataset[Tensor])
    assert_type(Labelled.from_objects("s3://bucket/a", transform=decode), Labelled)
    pairs = S3MapDataset.from_prefix("s3://bucket/prefix", samples=by_stem(".jpg", ".txt"), transform=decode_pair)
    assert_type(pairs, S3MapDataset[tuple[Tensor, str]])
    labelled = S3IterableDataset.from_prefix("s3://bucket/prefix", labels=by_folder(classes=["a"]), transform=decode)
    S3MapDataset.from_manifest("train.csv", labels=by_column("label", classes=range(10), allow_empty=True))
    by_row = S3MapDataset.from_source(Manifest("train.csv", "csv"), labels=by_column("label"), transform=decode)
    for source in (Prefix("s3://bucket/prefix"), Objects(["s3://bucket/a"]), Table("table"), Manifest("train.csv")):
        assert_type(S3IterableDataset.from_source(source, transform=decode), S3IterableDataset[Tensor])
    column: str | None = by_row.objects.label_column
    print(column)
    assert_type(labelled.classes, list[str])
    assert_type(labelled.class_to_idx, dict[str, int])
    first: int = labelled.targets[0]
    print(first)
    for item in stream:
        tensor = item
    loader: DataLoader[Tensor] = DataLoader(tensors, batch_size=8, num_workers=2)
    print(len(tensors), loader, tensor, reader)


def client_calls() -> None:
    config = S3ClientConfig(max_attempts=3, part_size=16 * 1024**2)
    client = S3Client("eu-west-1", endpoint="http://localhost:9000", s3client_config=config)
    content: bytes = client.read_range("bucket", "key", 0, 10)
    count: int = client.read_range("bucket", "key", 0, 10, into=bytearray(10))
    with client.get_object("bucket", "key", reader_config=S3ReaderConfig.adaptive(max_window=1024**2)) as reader:
        text = io.TextIOWrapper(reader)
        file: BinaryIO = reader
        size: int = reader.size
    with client.put_object("bucket", "key") as writer:
        opened: S3Writer = writer
        written: int = writer.write(memoryview(b"abc"))
    for page in client.list_objects("bucket", prefix="a"):
        sizes: list[int] = [info.size for info in page.object_info]
        print(sizes)
    stats: TransferStats = client.stats
    try:
        client.head_object("bucket", "key")
    except ObjectNotFoundError as error:
        missing: FileNotFoundError = error
        key: str | None = error.key
        print(missing, key)
    except S3Error:
        pass
    print(content, count, text, file, size, opened, written, stats)


def checkpoints(model: torch.nn.Module) -> None:
    checkpoint = S3Checkpoint("eu-west-1", reader_config=S3ReaderConfig(ReaderType.SEQUENTIAL))
    with checkpoint.writer("s3://bucket/model.pt") as writer:
        torch.save(model.state_dict(), writer)
    with checkpoint.reader("s3://bucket/model.pt") as reader:
        model.load_state_dict(torch.load(reader, weights_only=True))
    plugin = S3LightningCheckpoint("eu-west-1", endpoint="http://host:9")
    plugin.save_checkpoint({"state_dict": model.state_dict()}, "s3://bucket/model.ckpt")
    saved: dict[str, object] = plugin.load_checkpoint("s3://bucket/model.ckpt", weights_only=True)
    plugin.remove_checkpoint("s3://bucket/model.ckpt")
    storage = S3StorageConfig("eu-west-1", endpoint="http://host:9", save_id="job 7").create_storage()
    names: list[str] = storage.ls("s3://bucket/run")
    filled: MmapFill | None = native_fill(storage)
    cleaned: list[str] = clean("s3://bucket/run", older_than=86400, dry_run=True)
    print(names, filled, cleaned)
    print(saved)


def servers() -> None:
    with LocalS3() as server, server.activated():
        server.create_bucket("bucket")
        endpoint: str = server.endpoint
        print(endpoint)


def servers_that_fail() -> None:
    with FaultyServer({"key": b"content"}, bucket="bucket", seed=1, tls=True) as server:
        client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
        server.script(faults.reset_after(3), faults.truncate, faults.on("GetObject", fault=faults.status(503)))
        server.rates({faults.reset_mid_body: 0.01, faults.stall(1.0): 0.001, faults.wrong_host: 0.01})
        content: bytes = client.read_range("bucket", "key", 0)
        server.objects["other"] = content
        print(server.requests[0].method, server.injected["truncate"], server.authority, server.connections)


def servers_of_others() -> None:
    def show(number: int, count: int, result: conformance.Result) -> None:
        print(number, count, result.name, result.outcome is conformance.Outcome.PASSED, result.seen, result.consequence)

    names: list[str] = [check.name for check in conformance.checks() if not check.needs]
    report = conformance.run("bucket", endpoint="http://server", region="us-east-1", names=names, progress=show)
    found: conformance.Report = report
    failed: list[str] = found.named(conformance.Outcome.FAILED)
    text: str = found.to_json()
    print(found, found.ok, found["object.put-get"].seconds, failed, text, found.left_over, found.summary)


def directory_buckets() -> None:
    with ExpressServer({"key": b"content"}) as server, server.activated():
        client = S3Client(s3client_config=S3ClientConfig(sse_customer_key_file="key"))
        client.rename_object(server.bucket, "key", "other", if_none_match=True)
        client.append_object(server.bucket, "other", memoryview(b"more"), offset=7)
        client.copy_object(server.bucket, "other", server.bucket, "key", version_id="v")
        assert_type(server.objects["other"], bytes)


def what_a_save_tells() -> None:
    def note(stats: UploadStats) -> None:
        assert_type((stats.bucket, stats.key), tuple[str, str])
        assert_type((stats.size, stats.seconds, stats.requests, stats.retries), tuple[int, float, int, int])

    tensors = {"weight": torch.ones(3)}
    checkpoint = S3Checkpoint()
    checkpoint.save(tensors, "s3://bucket/key", on_upload=note)
    checkpoint.save_async(tensors, "s3://bucket/key", on_upload=note).result()
    checkpoint.save_async(tensors, "s3://bucket/key", executor="process").result()
    assert_type(checkpoint.estimate(tensors), UploadEstimate)
    save_file(tensors, "s3://bucket/key", on_upload=note)
    assert_type(estimate_file(tensors, max_shard_size=100), UploadEstimate)
    save_sharded(tensors, "s3://bucket/model.safetensors", progress=None, on_upload=note)
    assert_type(estimate_sharded(tensors, max_shard_size=100), UploadEstimate)
    model = S3HuggingFaceStorageWriter(None, "s3://bucket/model", progress=True, on_upload=note)
    assert_type(model.estimate(tensors, no_dist=True), UploadEstimate)
    S3LightningCheckpoint(progress=None, on_upload=note)
    writer = S3StorageWriter(None, "s3://bucket/prefix", progress=True, on_upload=note)
    assert_type(writer.estimate(tensors), UploadEstimate)

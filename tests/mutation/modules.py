"""Which tests say most about a module; the quickest first."""

from __future__ import annotations

from pathlib import PurePosixPath

__all__ = ["PACKAGES", "files_of", "wider_files"]

# What is changed, below src/s3torch.
PACKAGES = ("_transfer", "_aws", "_access", "_objects", "writer.py", "readers", "datasets")

_ENGINE = ("_transfer/test_engine.py", "_transfer/test_hedging.py")
_UPLOADS = ("test_writer.py",)
_READS = ("test_client.py", "test_integrity.py")

# Where the name does not tell. A folder stands for those of its modules that have no line.
_TESTS: dict[str, tuple[str, ...]] = {
    "_transfer": _ENGINE,
    "_transfer/connection.py": ("_transfer/test_connection.py",),
    "_transfer/open_sockets.py": ("_transfer/test_connection.py",),
    "_transfer/pool.py": ("_transfer/test_pool.py", *_ENGINE, "_transfer/test_connection.py"),
    "_transfer/http1.py": ("_transfer/test_http1.py",),
    "_transfer/plan.py": ("_transfer/test_plan.py",),
    "_transfer/pacing.py": ("_transfer/test_pacing.py", *_ENGINE),
    "_transfer/retry.py": ("_transfer/test_retry.py", *_ENGINE),
    "_transfer/facts.py": ("_transfer/test_facts.py", *_ENGINE),
    "_transfer/pauses.py": ("_transfer/test_pauses.py", *_ENGINE),
    "_transfer/buffers.py": ("_transfer/test_buffers.py",),
    "_aws/operations.py": ("_aws/test_operations.py", "_transfer/test_hedging.py", "test_integrity.py"),
    "_aws/sending.py": ("_aws/test_operations.py", *_UPLOADS, "test_integrity.py"),
    "_aws/multipart.py": ("_aws/test_multipart.py", *_UPLOADS),
    "_aws/session.py": ("_aws/test_session.py", "_aws/test_configuration.py", "test_client.py", "test_security.py"),
    "_aws/copying.py": ("_objects/test_copying.py",),
    "_aws/upload_listing.py": ("_objects/test_uploads.py", *_UPLOADS),
    "_aws/sigv4a.py": ("_aws/test_addresses.py",),
    "_aws/express.py": ("_aws/test_express.py", "testing/test_express.py"),
    "_access": ("test_ownership.py", "test_client.py"),
    "_objects": _READS,
    "_objects/fetch.py": ("_objects/test_fetch.py", *_READS),
    "_objects/upload.py": ("_objects/test_upload.py", *_UPLOADS),
    "_objects/part_buffer.py": ("_objects/test_upload.py", *_UPLOADS),
    "_objects/appending.py": ("testing/test_express.py",),
    "_objects/copying.py": ("_objects/test_copying.py",),
    "_objects/uploads.py": ("_objects/test_uploads.py", *_UPLOADS),
    "_objects/listing.py": ("_objects/test_listing.py", "datasets/test_listing.py", "test_client.py"),
    "writer.py": _UPLOADS,
    "readers/base.py": ("readers/test_readers.py", "readers/test_ranged.py", "readers/test_sequential.py"),
    "readers/__init__.py": ("readers/test_readers.py",),
    "readers/sequential.py": ("readers/test_sequential.py", "test_integrity.py"),
    "datasets/selecting.py": ("datasets/test_sources.py", "datasets/test_pin_etags.py"),
    "datasets/filters.py": ("datasets/test_sources.py",),
    "datasets/options.py": ("datasets/test_sources.py",),
    "datasets/by_index.py": ("datasets/test_streams.py",),
    "datasets/divided.py": ("engines/test_accelerate.py",),
    "datasets/stream_cursor.py": ("datasets/test_streams.py",),
    "datasets/grouping.py": ("datasets/test_samples_of_several.py",),
    "datasets/members.py": ("datasets/test_samples_of_several.py",),
    "datasets/course.py": (
        "datasets/test_samples_of_several.py",
        "datasets/test_labels.py",
        "datasets/test_sources.py",
    ),
    "datasets/base.py": ("datasets/test_map.py", "datasets/test_iterable.py"),
    "datasets/samples.py": ("datasets/test_map.py", "datasets/test_iterable.py"),
    "datasets/labels.py": ("datasets/test_labels.py", "datasets/test_label_columns.py"),
    "datasets/table.py": (
        "datasets/test_objects.py",
        "datasets/test_table.py",
        "datasets/test_table_file.py",
        "datasets/test_label_columns.py",
    ),
    "datasets/one_object.py": ("datasets/test_table.py", "datasets/test_objects.py"),
    "datasets/stored_table.py": ("datasets/test_stored_table.py",),
    "datasets/columns.py": ("datasets/test_table_file.py", "datasets/test_table.py"),
    "datasets/inventory.py": ("datasets/test_manifests.py",),
    **{
        f"datasets/{name}.py": ("datasets/test_manifests.py", "datasets/test_label_columns.py")
        for name in ("manifest", "manifest_formats", "rows")
    },
    "datasets/cursor.py": ("datasets/test_schedules.py", "datasets/test_loader.py"),
    "datasets/batch_sampler.py": ("datasets/test_loader.py", "datasets/test_schedules.py"),
    "datasets/windows.py": ("datasets/test_windows.py", "datasets/test_map.py"),
}

# By package: what else meets those that survive the tests of their module and the simulator.
_WIDER = ("test_client_faults.py", "test_integrity.py", "test_client.py", "test_writer.py", "test_ownership.py")
_WIDER_OF_PACKAGES: dict[str, tuple[str, ...]] = {
    "readers": (
        "readers/test_sequential.py",
        "readers/test_ranged.py",
        "test_client.py",
        "test_client_faults.py",
        "readers/test_adaptive.py",
        "test_ownership.py",
    ),
    "datasets": ("datasets/test_map.py", "datasets/test_sampling.py", "datasets/test_iterable.py", "test_ownership.py"),
}


def files_of(module: str) -> list[str]:
    """Return the test files of a module, both below their folders.

    Args:
        module: Such as ``_transfer/loop.py``.
    """
    path = PurePosixPath(module)
    mirrored = (str(path.with_name(f"test_{path.name}")),)
    return [f"tests/{name}" for name in _TESTS.get(module) or _TESTS.get(str(path.parent)) or mirrored]


def wider_files(module: str) -> list[str]:
    """Return the test files that a mutant of a module meets last."""
    names = _WIDER_OF_PACKAGES.get(PurePosixPath(module).parts[0], _WIDER)
    return [path for path in (f"tests/{name}" for name in names) if path not in files_of(module)]

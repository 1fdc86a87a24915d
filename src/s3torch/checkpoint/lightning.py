"""S3LightningCheckpoint: where the Trainer of Lightning saves its checkpoints, and loads them from.

Lightning comes as two packages, ``lightning`` and ``pytorch_lightning``, and the Trainer of each accepts only what
derives from its own CheckpointIO. So ours derives from that of each package that is installed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from s3torch.checkpoint.loading import MapLocation, load_object
from s3torch.checkpoint.saving import estimate_object, save_object
from s3torch.checkpoint.uploads import OnUpload, UploadEstimate
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import ArgumentTypeError, InvalidURIError
from s3torch.uri import parse_checkpoint_uri

__all__ = ["S3LightningCheckpoint"]

# pytorch_lightning brings lightning_fabric, and takes its CheckpointIO from there.
_FABRICS = {"lightning": "lightning.fabric", "lightning_fabric": "lightning_fabric"}

# How the names of Lightning's own short-lived files begin. It has the plugin save and load them, but on the local disk:
# the weights that a process which it has started (ddp_spawn, ddp_notebook) hands to its parent at the end of fit, and
# the state that a Tuner restores.
_SCRATCH = (".temp.ckpt", ".lr_find_", ".scale_batch_size_")


def _installed() -> dict[str, tuple[int, ...]]:
    """Return the fabrics that are installed, and the version of each, such as ``(2, 6)``."""
    found = [fabric for package, fabric in _FABRICS.items() if find_spec(package)]
    if not found:
        raise ModuleNotFoundError(
            "s3torch.lightning needs lightning or pytorch_lightning, and neither is installed: "
            "pip install 's3torch[lightning]'",
            name="lightning",
        )
    return {fabric: _release(import_module(fabric).__version__) for fabric in found}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def _refuses_code_unasked(versions: list[tuple[int, ...]]) -> bool:
    """Return whether torch decides what ``weights_only=None`` is; before Lightning 2.6 it was False.

    Of two packages the newer one says: what it refuses can be loaded by saying so, what the other loads has run.
    """
    return max(versions) >= (2, 6)


_INSTALLED = _installed()
_BASES = [import_module(f"{fabric}.plugins").CheckpointIO for fabric in _INSTALLED]


class S3LightningCheckpoint(*_BASES):  # type: ignore[misc]  # which bases there are is known when it is imported
    """A CheckpointIO that saves to S3, for ``Trainer(plugins=[...])`` of lightning and of pytorch_lightning.

    Example::

        trainer = Trainer(plugins=[S3LightningCheckpoint(region="eu-west-1")])
        trainer.fit(model)
        trainer.save_checkpoint("s3://bucket/model.ckpt")

    Args:
        region: Of the bucket; None finds it.
        s3client_config: See S3ClientConfig.
        endpoint: URL of the server; None finds it.
        progress: Whether to show a bar while a checkpoint is saved or loaded; None shows one on a terminal. The Trainer
            has bars of its own there.
        on_upload: Is told by an ``s3torch.checkpoint.UploadStats`` what it took, once a checkpoint is stored, by the
            thread that has stored it. What it raises is logged.
    """

    def __init__(
        self,
        region: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
        *,
        progress: bool | None = False,
        on_upload: OnUpload | None = None,
    ) -> None:
        self.region = region
        self.endpoint = endpoint
        self._progress = progress
        self._on_upload = on_upload
        major, minor = max(_INSTALLED.values())
        self._client = S3Client(
            region,
            endpoint=endpoint,
            s3client_config=s3client_config,
            user_agent_comments=["lightning", f"{major}.{minor}"],
        )

    def __repr__(self) -> str:
        return f"S3LightningCheckpoint(region={self.region!r}, endpoint={self.endpoint!r})"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: object = None) -> None:
        """Save a checkpoint. It appears whole, or not at all.

        Args:
            checkpoint: What the Trainer wants to keep.
            path: Where: ``s3://bucket/key``. Short-lived files of Lightning's own stay on the local disk.
            storage_options: Must be None, as for Lightning's own: there is nothing to choose.

        Raises:
            ArgumentTypeError: ``path`` is not a str, or ``storage_options`` were given.
            InvalidURIError: ``path`` is not of the form ``s3://bucket/key``, or names a folder.
            S3Error: It could not be stored; what was there before is unchanged.
        """
        if storage_options is not None:
            raise ArgumentTypeError(
                f"S3LightningCheckpoint has no storage_options, got {storage_options!r}. Say how to store by "
                "S3LightningCheckpoint(s3client_config=S3ClientConfig(...))."
            )
        if _is_scratch(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, path)
            return
        bucket, key = _parse(path)
        save_object(
            self._client,
            lambda: self._client.put_object(bucket, key),
            checkpoint,
            f"Saving {path}",
            progress=self._progress,
            on_upload=self._on_upload,
            may_change=True,  # AsyncCheckpointIO of Lightning before 2.6 saves the tensors that go on being trained
        )

    def estimate(self, checkpoint: dict[str, Any]) -> UploadEstimate:
        """Return what ``save_checkpoint`` would send, without sending anything; see ``S3Checkpoint.estimate``.

        Args:
            checkpoint: What would be saved, such as ``trainer.strategy.lightning_module.state_dict()``.
        """
        return estimate_object(checkpoint, self._client.s3client_config.part_size)

    def load_checkpoint(
        self,
        path: str,
        map_location: MapLocation = "cpu",
        weights_only: bool | None = None,  # noqa: FBT001  # as Lightning has it
    ) -> dict[str, Any]:
        """Load a checkpoint, all tensors concurrently and straight into their memory.

        Args:
            path: Where it is: ``s3://bucket/key``.
            map_location: As for torch.load. The CPU if it is not said, as for Lightning's own: the Trainer does not say
                it, and copies the state to its devices. None is the devices that the tensors were saved from.
            weights_only: As for torch.load: whether to refuse whatever could run code while it is loaded. None is
                False for Lightning before 2.6, and what torch.load makes of it since: True since torch 2.6.

        Raises:
            ArgumentTypeError: ``path`` is not a str.
            InvalidURIError: ``path`` is not of the form ``s3://bucket/key``, or names a folder.
            NotFoundError: There is no such bucket or object.
            CheckpointFormatError: It is no checkpoint, or cut off or damaged.
            pickle.UnpicklingError: It holds what ``weights_only`` refuses.
            S3Error: Any other failure.
        """
        if weights_only is None and not _refuses_code_unasked(list(_INSTALLED.values())):
            weights_only = False
        loaded: dict[str, Any]
        if _is_scratch(path):
            loaded = torch.load(path, map_location=map_location, weights_only=weights_only)
        else:
            bucket, key = _parse(path)
            loaded = load_object(
                self._client, bucket, key, map_location=map_location, weights_only=weights_only, progress=self._progress
            )
        return loaded

    def remove_checkpoint(self, path: str) -> None:
        """Delete a checkpoint. That there is none is no error; objects whose keys go on behind ``path`` are left alone.

        Raises:
            ArgumentTypeError: ``path`` is not a str.
            InvalidURIError: ``path`` is not of the form ``s3://bucket/key``, or names a folder.
            S3Error: It could not be deleted.
        """
        if _is_scratch(path):
            Path(path).unlink(missing_ok=True)
        else:
            self._client.delete_object(*_parse(path))

    def teardown(self) -> None:
        """Close the calling thread's connections; the Trainer calls it at its end, and may go on afterwards."""
        self._client.close()


def _is_scratch(path: object) -> bool:
    """Return whether this is a short-lived file of Lightning's own, on the local disk."""
    return isinstance(path, str) and "://" not in path and Path(path).name.startswith(_SCRATCH)


def _parse(path: str) -> tuple[str, str]:
    """Return bucket and key; the path is a str, as a Path would lose one of the slashes of ``s3://``."""
    if not isinstance(path, str):
        raise ArgumentTypeError(
            f"{type(path).__name__!r} is not a supported type for 'path'. Must be a string formatted as an S3 uri."
        )
    if not path.startswith("s3://"):
        raise InvalidURIError(
            f"Only s3:// URIs are supported by S3LightningCheckpoint, got {path!r}. Write 's3://bucket/key', or "
            "ModelCheckpoint(dirpath='s3://bucket/folder')."
        )
    return parse_checkpoint_uri(path)

"""S3Checkpoint: saves to S3 and loads from there, by itself or as a file for torch.save and torch.load."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Literal

from s3torch.checkpoint.group_timeout import GROUP_TIMEOUT
from s3torch.checkpoint.loading import MapLocation, load_object
from s3torch.checkpoint.saving import estimate_object, save_object
from s3torch.checkpoint.saving_process import SharedSnapshot, SharedStaging, save_in_process
from s3torch.checkpoint.staging import Snapshot, Staging
from s3torch.checkpoint.uploads import OnUpload, UploadEstimate, tell
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.errors import ArgumentError
from s3torch.readers import S3Reader, check_reader_config
from s3torch.uri import parse_checkpoint_uri, parse_version_uri
from s3torch.writer import S3Writer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["S3Checkpoint"]

_log = logging.getLogger(__name__)


class S3Checkpoint:
    """Opens objects to save checkpoints to and to load them from.

    Example::

        checkpoint = S3Checkpoint(region="eu-west-1")
        checkpoint.save(model.state_dict(), "s3://bucket/model.pt")
        model.load_state_dict(checkpoint.load("s3://bucket/model.pt"))

    or, as with any other file::

        with checkpoint.writer("s3://bucket/model.pt") as writer:
            torch.save(model.state_dict(), writer)
        with checkpoint.reader("s3://bucket/model.pt") as reader:
            model.load_state_dict(torch.load(reader, weights_only=True))

    Args:
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``reader`` returns; None is sequential.
    """

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_config: S3ReaderConfig | None = None,
    ) -> None:
        self.region = region
        self.endpoint = endpoint
        self._reader_config = check_reader_config(reader_config)
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)
        self._staging = Staging()
        self._shared_staging = SharedStaging()
        self._saving: tuple[int, Future[None]] | None = None
        self._turns: dict[int, _Turn] = {}

    def __getstate__(self) -> dict[str, object]:
        fresh = {"_staging": Staging(), "_shared_staging": SharedStaging(), "_saving": None, "_turns": {}}
        return {**self.__dict__, **fresh}

    def __repr__(self) -> str:
        return f"S3Checkpoint(region={self.region!r}, endpoint={self.endpoint!r})"

    def save(
        self, obj: object, s3_uri: str, *, progress: bool | None = None, on_upload: OnUpload | None = None
    ) -> None:
        """Save what torch.save can save. It appears whole, or not at all.

        The tensors are sent from where they are, without a copy (with torch >= 2.6).

        Args:
            obj: Such as a state dict; it must not change until this returns.
            s3_uri: Where.
            progress: Whether to show a bar; None shows one on a terminal.
            on_upload: Is told by an ``UploadStats`` what it took, once it is stored. What it raises is logged.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``, or names a folder.
            ArgumentError: S3 takes no object of that size (50 TB).
            S3Error: It could not be stored; what was there before is unchanged.
        """
        save_object(
            self._client,
            lambda: self.writer(s3_uri),
            obj,
            f"Saving {s3_uri}",
            progress=progress,
            on_upload=on_upload,
        )

    def estimate(self, obj: object) -> UploadEstimate:
        """Return what ``save`` would send, without sending anything.

        All but the bytes of the tensors is pickled, as ``save`` does it. (Before torch 2.6 it takes as long as
        torch.save.)

        Args:
            obj: Such as a state dict.
        """
        return estimate_object(obj, self._client.s3client_config.part_size)

    def save_async(
        self,
        obj: object,
        s3_uri: str,
        *,
        on_upload: OnUpload | None = None,
        executor: Literal["thread", "process"] = "thread",
    ) -> Future[None]:
        """Save what torch.save can save as it is now, while the caller goes on.

        What ``save`` would store now is stored: all but the bytes of the tensors is pickled before this returns. Those
        are copied into memory of the CPU (pinned for those of a GPU), which is used again by the next call; so it takes
        as much memory again as the state. If the call before is still saving, it waits for that, and so do calls of
        other threads: each future is that of its own state. A call in the middle of another one of the same thread, as
        of a signal handler, does not wait, and takes memory of its own. The interpreter waits for it at its end.

        Args:
            obj: Such as a state dict; it may change as soon as this returns.
            s3_uri: Where.
            on_upload: As for ``save``; is told by a thread of this process, before the future is done.
            executor: What saves. ``"process"``: a new process, for each call, so that a save takes no time of this
                interpreter; not on Windows. It starts in seconds, finds credentials by itself, in this environment, and
                knows region, endpoint and configuration of this S3Checkpoint, not what a subclass has changed. The
                copies lie in memory that both map, which is not pinned. If this process is killed it ends the save.

        Returns:
            A future that is done when the checkpoint is there; its ``result()`` raises what ``save`` would. A failure
            is logged as well.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``, or names a folder.
            ArgumentError: ``executor`` is another one, or cannot be on this system.
            RuntimeError: No thread could be started.
        """
        parse_checkpoint_uri(s3_uri)
        if executor not in ("thread", "process"):
            raise ArgumentError(f"executor={executor!r} cannot be: it must be 'thread' or 'process'.")
        is_process = executor == "process"
        if is_process and os.name != "posix":
            raise ArgumentError("executor='process' needs a POSIX system: use 'thread'.")
        # A lock of each process: a forked child would wait for ever for a thread that it has not.
        turn = self._turns.setdefault(os.getpid(), _Turn())
        with turn.lock:
            if turn.is_taken:  # by a call of this thread that this one is in the middle of, and would wait for
                own = SharedStaging() if is_process else Staging()
                return self._begin_to_save(obj, s3_uri, on_upload, own, Future())
            turn.is_taken = True
            try:
                if self._saving is not None and self._saving[0] == os.getpid():  # a forked child has not the thread
                    wait([self._saving[1]])
                future: Future[None] = Future()
                self._saving = os.getpid(), future
                kept = self._shared_staging if is_process else self._staging
                return self._begin_to_save(obj, s3_uri, on_upload, kept, future)
            finally:
                turn.is_taken = False

    def _begin_to_save(
        self,
        obj: object,
        s3_uri: str,
        on_upload: OnUpload | None,
        staging: Staging | SharedStaging,
        future: Future[None],
    ) -> Future[None]:
        """Copy a state, and start the thread that saves it, or waits for that; if it fails, the future is done then."""
        future.set_running_or_notify_cancel()
        try:
            copied = staging.copy(obj)
        except BaseException as error:
            _fail(future, error, s3_uri)  # the next call would wait for it
            if isinstance(error, Exception):
                return future
            raise
        returning = threading.Event()
        # Not a daemon, even if the caller is one: the interpreter waits for it.
        thread = threading.Thread(
            target=self._save_into,
            args=(future, copied, s3_uri, on_upload, returning),
            name=f"saving {s3_uri}",
            daemon=False,
        )
        try:
            thread.start()
        except RuntimeError as error:  # there are too many threads
            future.set_exception(error)  # the next call would wait for it
            raise
        finally:
            returning.set()
        return future

    def _save_into(
        self,
        future: Future[None],
        copied: Snapshot | SharedSnapshot,
        s3_uri: str,
        on_upload: OnUpload | None,
        returning: threading.Event,
    ) -> None:
        returning.wait()  # a new thread runs for 5 ms before the interpreter goes on with the one that waits for it
        try:
            if isinstance(copied, SharedSnapshot):
                config = self._client.s3client_config
                tell(on_upload, save_in_process(self.region, self.endpoint, config, copied, s3_uri))
            else:
                self.save(copied, s3_uri, progress=False, on_upload=on_upload)
        except BaseException as error:  # noqa: BLE001  # it is the future's
            _fail(future, error, s3_uri)
        else:
            future.set_result(None)
        finally:
            self._client.close()  # the connections of this thread

    def load(
        self,
        s3_uri: str,
        map_location: MapLocation = None,
        *,
        weights_only: bool = True,
        progress: bool | None = None,
        group: ProcessGroup | None = None,
        group_timeout: float = GROUP_TIMEOUT,
    ) -> Any:  # noqa: ANN401  # whatever was saved
        """Load what torch.save wrote, all tensors concurrently and straight into their memory.

        Args:
            s3_uri: Where it is; with ``?versionId=...`` at its end that version.
            map_location: As for torch.load.
            weights_only: As for torch.load: whether to refuse whatever could run code while it is loaded.
            progress: Whether to show a bar; None shows one on a terminal.
            group: Of torch.distributed: all its ranks call this with the same arguments (``map_location`` may name
                another device of the same kind), each reads a share of the bytes, and gets the others' by way of the
                group. If a rank fails, all raise its error, with the rank's number in front. None reads all by itself.
            group_timeout: Seconds that a rank waits for the others, at each step of a load by a group.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``.
            NotFoundError: There is no such bucket or object.
            DeadlineError: A rank of the group did not come, or does not answer any more; it is named.
            CheckpointFormatError: It is no checkpoint, or cut off or damaged.
            pickle.UnpicklingError: It holds what ``weights_only`` refuses.
            S3Error: Any other failure.
        """
        if group is not None:
            from s3torch.checkpoint.load_together import load_object_together  # imports torch.distributed

            return load_object_together(
                group,
                group_timeout,
                self._client,
                s3_uri,
                map_location=map_location,
                weights_only=weights_only,
                progress=progress,
            )
        bucket, key, version_id = parse_version_uri(s3_uri)
        return load_object(
            self._client,
            bucket,
            key,
            version_id=version_id,
            map_location=map_location,
            weights_only=weights_only,
            progress=progress,
        )

    def reader(self, s3_uri: str) -> S3Reader:
        """Return a file to load from; no request is sent yet.

        Args:
            s3_uri: Where it is; with ``?versionId=...`` at its end that version.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``.
        """
        bucket, key, version_id = parse_version_uri(s3_uri)
        if version_id is None:
            return self._client.get_object(bucket, key, reader_config=self._reader_config)
        return self._client.get_object(bucket, key, reader_config=self._reader_config, version_id=version_id)

    def writer(self, s3_uri: str) -> S3Writer:
        """Return a file to save to. The checkpoint appears when it is closed; an exception inside ``with`` leaves none.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``, or names a folder.
        """
        bucket, key = parse_checkpoint_uri(s3_uri)
        return self._client.put_object(bucket, key)


class _Turn:
    """Whose turn it is to copy a state: of one thread at a time.

    Attributes:
        lock: Its thread may take it again, in a signal handler or while it pickles: such a call finds ``is_taken``.
        is_taken: Whether the thread that holds the lock is in the middle of a call.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_taken = False


def _fail(future: Future[None], error: BaseException, s3_uri: str) -> None:
    _log.error("%s was not saved", s3_uri, exc_info=error)
    future.set_exception(error)

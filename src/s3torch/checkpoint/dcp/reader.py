"""S3StorageReader: loads a distributed checkpoint.

A load plan names, for each tensor or object that this rank needs, a stored item: a range of one of the checkpoint's
files. torch's own reader goes from item to item. Here the ranges of all files are sorted, neighbours joined, and
requested ahead of the items being unpacked, within a bound of memory: what takes time, the first byte of each request,
is waited for once and not for each item.

A large tensor that a span is all of is received straight into its memory: see ``in_place``.

Of a large tensor of which this rank needs less than half (another number of ranks has saved it) only the rows that it
needs are read: see ``layout``. That takes two rounds, the first for the ends of all such items together.

With ``checksums="strict"`` an item is read whole, and its records are compared with the CRC-32s in there. What has none
is kept until all that this rank reads of its file is there, and then proven by the checksums of the object.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from s3torch._objects.fetch import RangeFetch
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch._transfer.buffers import BytesBuffer
from s3torch.checkpoint.dcp import layout
from s3torch.checkpoint.dcp.filesystem import S3FileSystem
from s3torch.checkpoint.dcp.in_place import InPlace, aliases_state
from s3torch.checkpoint.dcp.layout import Layout
from s3torch.checkpoint.dcp.spans import Read, Span, spans
from s3torch.checkpoint.proof import Proof
from s3torch.checkpoint.proven_file import ProvenFile
from s3torch.checkpoint.storages import copy_into
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.errors import CheckpointFormatError, IntegrityError, S3Error
from s3torch.readers import check_reader_config
from s3torch.uri import parse_s3_uri

__all__ = ["S3StorageReader"]

# Of each file, the bytes by whose meaning others were found: by where they begin.
_Parsed = dict[str, dict[int, bytes]]

MiB = 1024 * 1024
# Bytes that are requested ahead of the items being unpacked; one larger item goes alone. Not tuned.
_AHEAD = 128 * MiB
_IN_PLACE_SHARE = 4  # so that what is under way is bounded by the connections, not by this
# Bytes of joined neighbours at most.
_JOINED = 8 * MiB
# How often an item is fetched that does not have its CRC-32; as for a single request.
_ATTEMPTS = 3
# Bytes of an item from which on it is worth to look where its elements are. Not tuned.
_WORTH_A_LOOK = MiB


class _Buffer:
    """Memory of its own for the bytes of a span."""

    def __init__(self, size: int) -> None:
        self._memory = BytesBuffer(size)
        self.views = [self._memory.view]

    def content(self) -> memoryview:
        """Return the bytes."""
        return self.views[0]


class S3StorageReader(FileSystemReader):
    """Loads a distributed checkpoint, for ``torch.distributed.checkpoint.load``.

    Args:
        region: Of the bucket; None finds it.
        path: Of the checkpoint, ``s3://bucket/prefix``.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``.metadata`` is read with; None is sequential, and so is all with
            ``checksums="strict"``, as others hand out what is not verified yet. Items are read as ranges always.
        endpoint: URL of the server; None finds it.
        **kwargs: Of torch's FileSystemReader.

    Raises:
        InvalidURIError: ``path`` is not of the form ``s3://bucket/key``.
        ArgumentTypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_config: S3ReaderConfig | None = None,
        *,
        endpoint: str | None = None,
        **kwargs: Any,  # noqa: ANN401  # torch's own, which differ between its versions
    ) -> None:
        parse_s3_uri(os.fspath(path) if isinstance(path, os.PathLike) else path)
        super().__init__(path, **kwargs)
        self.fs: S3FileSystem = S3FileSystem(  # type: ignore[assignment]  # torch declares its own
            region, s3client_config=s3client_config, reader_config=reader_config, endpoint=endpoint
        )
        self._is_strict = self.fs.client.s3client_config.checksums == "strict"
        if self._is_strict:
            self.fs.reader_config = check_reader_config(None)
        self.path = self.fs.init_path(path)
        self._chunks: dict[tuple[str, torch.Size | None], tuple[torch.Size, torch.dtype]] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401  # torch's signature
        """Read ``.metadata``, or that of a rank.

        Raises:
            CheckpointFormatError: It is empty, cut off or damaged.
            S3Error: It is missing, or could not be read.
        """
        with self._damage_named("its metadata"):
            return super().read_metadata(*args, **kwargs)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, FBT001  # torch's signature
        """Take over what is stored where."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._chunks = {
            (name, chunk.offsets): (chunk.sizes, stored.properties.dtype)
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
            for chunk in stored.chunks
        }

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Load what a plan names, from all files at the same time.

        Raises:
            S3Error: A file is missing, shorter than ``.metadata`` says, damaged, or could not be read. Tensors may have
                been loaded in part.
            UnverifiedError: ``checksums`` are "strict", and nothing proves what was read.
        """
        objects: dict[str, RemoteObject] = {}
        parsed: _Parsed = {}
        reads = self._narrowed([self._read(item) for item in plan.items], objects, parsed)
        targets = self._targets(reads, planner)
        # After a failure nothing more goes into a target.
        with contextlib.closing(self._arrived(reads, objects, targets)) as arrived:
            if self._is_strict:
                self._deliver_proven(arrived, objects, parsed, planner)
            else:
                for span, memory in arrived:
                    self._deliver_span(span, memory, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _deliver_span(self, span: Span, memory: _Buffer | InPlace, planner: LoadPlanner) -> None:
        if isinstance(memory, InPlace) and memory.has_arrived:
            planner.commit_tensor(span.reads[0].item, memory.target)
        else:
            for read, content in span.contents(memory.content()):
                self._deliver(read, content, planner)

    def _deliver_proven(
        self,
        arrived: Iterable[tuple[Span, _Buffer | InPlace]],
        objects: dict[str, RemoteObject],
        parsed: _Parsed,
        planner: LoadPlanner,
    ) -> None:
        """Deliver what proves itself at once, and all else when what was read of its file is proven together."""
        held: list[tuple[Span, _Buffer | InPlace]] = []
        try:
            for span, memory in arrived:
                if held and held[0][0].path != span.path:
                    self._deliver_held(held, objects, parsed, planner)
                if isinstance(memory, InPlace):
                    held.append((span, memory))
                    continue
                contents = span.contents(memory.content())
                files = [self._proven_file(read, content, objects) for read, content in contents]
                if None in files:
                    held.append((span, memory))
                    continue
                for (read, content), file in zip(span.contents(memory.content()), files, strict=True):
                    self._deliver(read, content, planner, file)
            if held:
                self._deliver_held(held, objects, parsed, planner)
        finally:
            held.clear()  # whoever keeps an error keeps this frame

    def _deliver_held(
        self,
        held: list[tuple[Span, _Buffer | InPlace]],
        objects: dict[str, RemoteObject],
        parsed: _Parsed,
        planner: LoadPlanner,
    ) -> None:
        """Deliver what was read of one file, once all of it is proven; nothing is held then."""
        path = held[0][0].path
        proof = Proof(self._object(path, objects))
        for start, content in parsed.get(path, {}).items():
            proof.add_parsed(start, content)
        for span, memory in held:
            start = span.start
            for view in memory.views:
                proof.add(start, view)
                start += len(view)
        proof.conclude()
        for span, memory in held:
            self._deliver_span(span, memory, planner)
        held.clear()

    def _proven_file(self, read: Read, content: memoryview, objects: dict[str, RemoteObject]) -> ProvenFile | None:
        """Return an item as a file of proven records, which is fetched again if it is damaged.

        Returns:
            None if nothing in it proves it.

        Raises:
            IntegrityError: It is damaged, however often it is fetched.
        """
        if read.layout is not None or self._descriptors(read.item.storage_index):
            return None
        what = f"{read.item.storage_index.fqn} in {self._place(read.path)}"
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(IntegrityError):
                return ProvenFile.of(content, what)
            content = next(self._fetched([read], objects))[1]
        return ProvenFile.of(content, what)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can name a checkpoint."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    def _read(self, item: ReadItem) -> Read:
        stored = self.storage_data.get(item.storage_index)
        if stored is None:
            raise S3Error(f"{self.path} says nothing of where {item.storage_index} is: the checkpoint is incomplete.")
        return Read(item, stored.relative_path, stored.offset, stored.offset + stored.length)

    def _narrowed(self, reads: Sequence[Read], objects: dict[str, RemoteObject], parsed: _Parsed) -> list[Read]:
        """Replace reads of stored tensors by reads of their rows, where that saves enough or there is no other way."""
        plain, archives, safetensors = [], [], []
        for read in reads:
            if self._is_safetensors(read):
                safetensors.append(read)
            elif self._is_worth_slicing(read):
                archives.append(read)
            else:
                plain.append(read)
        return [*plain, *self._archive_rows(archives, objects), *self._safetensors_rows(safetensors, objects, parsed)]

    def _archive_rows(self, reads: Sequence[Read], objects: dict[str, RemoteObject]) -> list[Read]:
        ends = [end for read in reads for end in _ends(read)]
        fetched = {(read.path, read.start, read.stop): bytes(content) for read, content in self._fetched(ends, objects)}
        rows = []
        for read in reads:
            head, tail = (fetched[end.path, end.start, end.stop] for end in _ends(read))
            found = layout.archive_layout(head, tail, read.stop - read.start)
            rows.append(read if found is None else _rows(read, replace(found, start=found.start + read.start)))
        return rows

    def _safetensors_rows(self, reads: Sequence[Read], objects: dict[str, RemoteObject], parsed: _Parsed) -> list[Read]:
        lengths = [replace(read, stop=read.start + 8) for read in reads]
        headers = []
        for read, content in self._fetched(lengths, objects):
            parsed.setdefault(read.path, {})[read.start] = bytes(content)
            size = layout.safetensors_header_size(bytes(content), self._place(read.path))
            headers.append(replace(read, start=read.start + 8, stop=read.start + 8 + size))
        rows = []
        for read, content in self._fetched(headers, objects):
            parsed[read.path][read.start] = bytes(content)
            name = read.item.storage_index.fqn
            rows.append(_rows(read, layout.safetensors_layout(bytes(content), name, read.stop, self._place(read.path))))
        return rows

    def _fetched(self, reads: Iterable[Read], objects: dict[str, RemoteObject]) -> Iterator[tuple[Read, memoryview]]:
        """Yield each read with its bytes."""
        for span, memory in self._arrived(reads, objects, {}):
            yield from span.contents(memory.content())

    def _arrived(
        self, reads: Iterable[Read], objects: dict[str, RemoteObject], targets: Mapping[Read, torch.Tensor]
    ) -> Generator[tuple[Span, _Buffer | InPlace], None, None]:
        """Yield the spans of reads as they have arrived, in memory that is theirs alone, or in place.

        Args:
            reads: In any order.
            objects: Those that are known.
            targets: The tensors of those that may be received in place.
        """
        waiting = deque(spans(reads, DEFAULT_MAX_GAP, _JOINED))
        begun: deque[tuple[Span, _Buffer | InPlace, RangeFetch]] = deque()
        ahead = 0
        try:
            while True:
                while True:
                    if not waiting or (begun and ahead + waiting[0].size > _AHEAD):
                        break
                    span = waiting.popleft()
                    memory = _in_place(span, targets) or _Buffer(span.size)
                    fetch = self._object(span.path, objects).new_range_fetch(span.start, *memory.views)
                    begun.append((span, memory, fetch))  # first: what is in there is cancelled
                    fetch.begin()
                    ahead += _weight(span, memory)
                if not begun:
                    break
                span, memory, fetch = begun[0]
                fetch.finish()
                yield span, memory
                ahead -= _weight(span, memory)
                begun.popleft()
        finally:
            while begun:  # and keep no reference: whoever keeps an error keeps this frame
                begun[-1][2].cancel()
                begun.pop()
            del begun

    def _targets(self, reads: Iterable[Read], planner: LoadPlanner) -> dict[Read, torch.Tensor]:
        """Return the tensors of large reads, but for those whose memory is that of several."""
        if not aliases_state(planner):
            return {}
        large = [read for read in reads if read.item.type != LoadItemType.BYTE_IO and self._has_layout(read)]
        if self._is_strict:  # an archive proves itself where it is all in one piece
            large = [read for read in large if read.layout is not None]
        targets = {read: planner.resolve_tensor(read.item).detach() for read in large}
        times = Counter(target.data_ptr() for target in targets.values())
        return {
            read: target
            for read, target in targets.items()
            if times[target.data_ptr()] == 1 and target.size() == read.item.lengths
        }

    def _object(self, path: str, objects: dict[str, RemoteObject]) -> RemoteObject:
        if path not in objects:
            bucket, key = parse_s3_uri(self._place(path))
            objects[path] = RemoteObject(self.fs.client._access, bucket, key)
        return objects[path]

    def _deliver(self, read: Read, content: memoryview, planner: LoadPlanner, file: ProvenFile | None = None) -> None:
        item = read.item
        if item.type == LoadItemType.BYTE_IO:
            with self._damage_named(f"{item.storage_index.fqn} in {read.path}"):
                planner.load_bytes(item, file or self._untransformed(read, content))
            return
        with self._damage_named(f"{item.storage_index.fqn} in {read.path}"):
            stored = self._tensor(read, content, file)
        offsets = item.storage_offsets if read.layout is None else (0, *item.storage_offsets[1:])
        for dimension, (offset, length) in enumerate(zip(offsets, item.lengths, strict=False)):
            stored = stored.narrow(dimension, offset, length)
        target = planner.resolve_tensor(item).detach()
        if target.size() != stored.size():
            raise S3Error(
                f"{item.storage_index.fqn} of {self.path} has the size {tuple(stored.size())} where the plan has a "
                f"tensor of {tuple(target.size())}."
            )
        copy_into(target, stored)
        planner.commit_tensor(item, target)

    def _tensor(self, read: Read, content: memoryview, file: ProvenFile | None) -> torch.Tensor:
        """Return the tensor that was read: the stored one, or the rows of it that the item needs."""
        if read.layout is not None:
            return read.layout.tensor(content)
        if file is None and self._has_layout(read):  # saves the two copies that torch.load makes
            head, tail = bytes(content[: layout.ENDS]), bytes(content[-layout.ENDS :])
            found = layout.archive_layout(head, tail, len(content))
            if found is not None:
                return found.tensor(content[found.start : found.stop])
        tensor: torch.Tensor = torch.load(
            file or self._untransformed(read, content), map_location="cpu", weights_only=True, mmap=False
        )
        return tensor

    @contextlib.contextmanager
    def _damage_named(self, what: str) -> Iterator[None]:
        """Name the checkpoint in what a damaged pickle or archive raises; what else it might call raises as it is."""
        try:
            yield
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
                raise
            raise CheckpointFormatError(f"{what} cannot be read from the checkpoint {self.path}: {error}") from error

    def _untransformed(self, read: Read, content: memoryview) -> io.BytesIO:
        stream = io.BytesIO(content)
        descriptors = self._descriptors(read.item.storage_index)
        if not descriptors:
            return stream
        return io.BytesIO(self.transforms.transform_load_stream(read.item, descriptors, stream).read(-1))

    def _descriptors(self, index: MetadataIndex) -> Sequence[str]:
        """Return what was done to an item's bytes when it was saved; older versions of torch know of nothing."""
        return getattr(self.storage_data[index], "transform_descriptors", None) or ()

    def _is_safetensors(self, read: Read) -> bool:
        """Whether an item is a tensor of a safetensors file: torch gives it the size of its elements alone."""
        shape, dtype = self._chunk(read.item)
        if shape is None or dtype is None or self._descriptors(read.item.storage_index):
            return False
        return shape.numel() * dtype.itemsize == read.stop - read.start

    def _is_worth_slicing(self, read: Read) -> bool:
        shape, _ = self._chunk(read.item)
        if not shape or not self._has_layout(read) or self._is_strict:  # a CRC-32 is of all rows
            return False
        return 2 * read.item.lengths[0] < shape[0]

    def _has_layout(self, read: Read) -> bool:
        """Whether an item is large enough to look for its elements, and was stored as it is."""
        return read.stop - read.start >= _WORTH_A_LOOK and not self._descriptors(read.item.storage_index)

    def _chunk(self, item: ReadItem) -> tuple[torch.Size | None, torch.dtype | None]:
        """Return shape and dtype of a stored tensor; None of what is none."""
        if item.type == LoadItemType.BYTE_IO:
            return None, None
        index = item.storage_index
        return self._chunks.get((index.fqn, index.offset), (None, None))

    def _place(self, path: str) -> str:
        return self.fs.concat_path(self.path, path)


def _weight(span: Span, memory: _Buffer | InPlace) -> int:
    """Return how many bytes a span counts ahead: one that is received in place takes no memory, only its turn."""
    return span.size // _IN_PLACE_SHARE if isinstance(memory, InPlace) else span.size


def _in_place(span: Span, targets: Mapping[Read, torch.Tensor]) -> InPlace | None:
    """Return the memory of the tensor that a span is all of, if it can be received there."""
    target = targets.get(span.reads[0]) if len(span.reads) == 1 else None
    return None if target is None else InPlace.of(target, span.size, span.reads[0].layout)


def _ends(read: Read) -> tuple[Read, Read]:
    """Return the reads of an archive's head and tail."""
    return replace(read, stop=read.start + layout.ENDS), replace(read, start=read.stop - layout.ENDS)


def _rows(read: Read, found: Layout) -> Read:
    """Return the read of the rows that an item needs."""
    if found.shape:
        found = found.rows(read.item.storage_offsets[0], read.item.lengths[0])
    return replace(read, start=found.start, stop=found.stop, layout=found)

"""Tensors read from safetensors files: the header by one request, and the tensors' bytes straight into their memory.

All files of a sharded model are read at the same time. What a header says is checked against the size of the object
before a tensor is allocated, and header and tensors are of the same version of the object: its ETag is pinned.

It is one file of over 450 lines: files, tensors and slices are read by the same few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from s3torch._aws.operations import HeadObject
from s3torch._objects.beginnings import Beginning, read_beginnings
from s3torch._objects.remote import RemoteObject
from s3torch._objects.spread import run
from s3torch.checkpoint.proof import Proof
from s3torch.checkpoint.safetensors.dtypes import bytes_of, empty, shape_in_items, torch_dtype
from s3torch.checkpoint.safetensors.format import (
    LENGTH_SIZE,
    MAX_HEADER_SIZE,
    Header,
    TensorInfo,
    parse_header,
    parse_header_size,
    parse_index,
)
from s3torch.checkpoint.safetensors.slices import ranges_of, select
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointFormatError,
    ClosedError,
    InvalidURIError,
    ObjectNotFoundError,
)
from s3torch.uri import parse_version_uri

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = [
    "ClientContext",
    "File",
    "SafeOpen",
    "SafeSlice",
    "choose",
    "client_for",
    "device_of",
    "kind_of",
    "load_tensors",
    "names_of",
    "open_model",
    "safe_open",
]

# Bytes of the first request: 8 and a header, which takes some 100 for each tensor. Fewer cost a request as well.
_HEAD_SIZE = 256 * 1024
_INDEX_SUFFIX = ".json"
_MOST_NAMES = 10  # of missing files in a message
_NAME = "model.safetensors"  # in a folder, as Hugging Face names it
# Pinned memory that is filled before it is copied to another device, in bytes: two of these are held at most.
_STAGE_SIZE = 512 * 1024**2


def open_model(client: S3Client, uri: str, wanted: Sequence[str] | None) -> list[File]:
    """Read the headers of a model's files: of those that hold what is wanted; None wants all."""
    bucket, key, version_id = parse_version_uri(uri)
    return (
        _open(client, bucket, key, wanted) if version_id is None else [_open_version(client, bucket, key, version_id)]
    )


def choose(files: Sequence[File], wanted: Sequence[str] | None, uri: str) -> list[tuple[File, str]]:
    """Return the tensors that are wanted, and the file of each.

    Raises:
        ArgumentError: One is not there.
    """
    found = {name: file for file in files for name in file.header.tensors}
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise ArgumentError(f"{uri} has no tensor {missing[0]!r} ({len(missing)} of the keys are not there).")
    return [(found[name], name) for name in (found if wanted is None else wanted)]


def safe_open(
    uri: str,
    framework: str = "pt",
    device: torch.device | str | int = "cpu",
    *,
    client: S3Client | None = None,
    region: str | None = None,
    endpoint: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> SafeOpen:
    """Open one safetensors file to read some of its tensors, or slices of them, as ``safetensors.safe_open`` does.

    Example::

        with safe_open("s3://bucket/model.safetensors") as file:
            weight = file.get_tensor("weight")
            rows = file.get_slice("embedding")[1000:2000]

    Args:
        uri: Of the file; with ``?versionId=...`` at its end that version.
        framework: ``"pt"`` (or ``"torch"``, ``"pytorch"``): there is no other.
        device: See ``load_file``.
        client: Sends the requests; None makes one of the following.
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.

    Raises: see ``load_file``.
    """
    if framework not in ("pt", "torch", "pytorch"):
        raise ArgumentError(f"framework={framework!r} cannot be: only 'pt' is supported.")
    target = device_of(device)
    bucket, key, version_id = parse_version_uri(uri)
    context = client_for(client, region, endpoint, s3client_config)
    try:
        file = _open_version(context.client, bucket, key, version_id)
        file.prove_head()
    except BaseException:
        context.close()
        raise
    return SafeOpen(file, target, context)


class ClientContext:
    """A client of the caller's, or one that is closed in the end."""

    def __init__(self, client: S3Client, *, is_own: bool) -> None:
        self.client = client
        self._is_own = is_own

    def __enter__(self) -> S3Client:
        return self.client

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, if it is not the caller's."""
        if self._is_own:
            self.client.close()


def client_for(
    client: S3Client | None, region: str | None, endpoint: str | None, s3client_config: S3ClientConfig | None
) -> ClientContext:
    """Return the client that was given, or a new one.

    Raises:
        ArgumentError: Both a client and what one is made of were given.
        ArgumentTypeError: ``client`` is none.
    """
    if client is None:
        return ClientContext(S3Client(region, endpoint=endpoint, s3client_config=s3client_config), is_own=True)
    if not isinstance(client, S3Client):
        raise ArgumentTypeError(f"client must be an S3Client, got {client!r}.")
    if region is not None or endpoint is not None or s3client_config is not None:
        raise ArgumentError("client was given: region, endpoint and s3client_config are its own.")
    return ClientContext(client, is_own=False)


class File:
    """A file whose header was read.

    Args:
        remote: The object.
        header: What it says; of a file that an index names, only the tensors that it is to have.
        head: Its first bytes: the header, and of small files all.
        data_start: Where the header ends.
        proven: How many of the first bytes are proven already, with ``checksums="strict"``.

    Attributes:
        remote: As given.
        header: As given.
        head: As given.
        data_start: As given.
    """

    def __init__(self, remote: RemoteObject, header: Header, head: bytes, data_start: int, *, proven: int = 0) -> None:
        self.remote = remote
        self.header = header
        self.head = head
        self.data_start = data_start
        self._proven = proven

    def prove_head(self) -> None:
        """Verify the first bytes, before anything else of the file is read, with ``checksums="strict"``.

        Raises:
            IntegrityError: They are damaged.
            UnverifiedError: Nothing proves them.
        """
        if self.remote.is_strict and self._proven < len(self.head):
            proof = Proof(self.remote)
            proof.add_parsed(0, self.head)
            proof.conclude()
            self._proven = len(self.head)

    def prove(self, contents: Iterable[tuple[int, memoryview]]) -> None:
        """Verify what was read of the file, and its header, with ``checksums="strict"``; see ``prove_head``.

        Args:
            contents: Places in the file, and what was read there, which is fetched again if it is damaged.
        """
        if not self.remote.is_strict:
            return
        proof = Proof(self.remote)
        if self._proven < self.data_start:
            proof.add_parsed(0, self.head[: self.data_start])
        for start, view in contents:
            if start + len(view) > self._proven:
                proof.add(start, view)
        proof.conclude()
        self._proven = max(self._proven, self.data_start)

    def __str__(self) -> str:
        return _where(self.remote)


def _finish(read: Beginning) -> File:
    """Return a file whose first bytes are read: with its header, whatever the header's size."""
    head, remote, where = read.finish(), read.remote, _where(read.remote)
    file_size = remote.size or 0
    stop = LENGTH_SIZE + parse_header_size(head, file_size, where)
    proven = file_size if len(head) == file_size else 0  # what is read whole is verified
    if stop > len(head):
        head += remote.read(len(head), stop)
    return File(remote, parse_header(head[LENGTH_SIZE:stop], file_size, where), head, stop, proven=proven)


def _open(client: S3Client, bucket: str, key: str, wanted: Sequence[str] | None) -> list[File]:
    """Read the headers of a model's files: of those that hold what is wanted."""
    if key.endswith("/"):
        try:
            return _open(client, bucket, f"{key}{_NAME}.index.json", wanted)
        except ObjectNotFoundError as error:
            if error.key is not None and not error.key.endswith(_INDEX_SUFFIX):
                raise  # there is an index, and a file is missing
            key += _NAME
    if not key.endswith(_INDEX_SUFFIX):
        return _open_files(client, bucket, [key])
    where = f"s3://{bucket}/{key}"
    index = RemoteObject(client._access, bucket, key)
    text = index.read(0, MAX_HEADER_SIZE + 1)
    if len(text) > MAX_HEADER_SIZE:
        raise CheckpointFormatError(f"{where} is no index of a sharded model: it has over {MAX_HEADER_SIZE} bytes.")
    shards = parse_index(text, where)
    if wanted is not None:
        shards = {file: [name for name in names if name in set(wanted)] for file, names in shards.items()}
        shards = {file: names for file, names in shards.items() if names}
    folder = key[: key.rfind("/") + 1]
    files = _open_shards(client, bucket, [folder + file for file in shards], where)
    for file, names in zip(files, shards.values(), strict=True):
        tensors = file.header.tensors
        for name in names:
            if name not in tensors:
                raise CheckpointFormatError(f"{file} has no tensor {name!r}, which should be there by {where}.")
        file.header = Header({name: tensors[name] for name in tensors if name in set(names)}, file.header.metadata)
    return files


def _open_shards(client: S3Client, bucket: str, keys: Sequence[str], where: str) -> list[File]:
    """Read the headers of the files that an index names; an error names all that are missing."""
    try:
        return _open_files(client, bucket, keys)
    except ObjectNotFoundError as error:
        heads = [HeadObject(client._access.bucket(bucket), key, is_lenient=True) for key in keys]
        client._access.run(heads)
        missing = [key for key, head in zip(keys, heads, strict=True) if head.is_missing]
        if not missing:
            raise
        names = ", ".join(key.rpartition("/")[2] for key in missing[:_MOST_NAMES])
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        error.key = missing[0]
        said = (
            f"{where} names {len(keys)} files, of which {len(missing)} are not there: {names}{more}. The model was "
            "replaced or deleted while it was loaded, or it was copied without them: load it again, or copy it anew."
        )
        error.args = (said,)
        raise


def _open_version(client: S3Client, bucket: str, key: str, version_id: str | None) -> File:
    """Read the header of one file; of a version, if one is named."""
    if version_id is not None and key.endswith(("/", _INDEX_SUFFIX)):
        raise InvalidURIError(f"s3://{bucket}/{key} is a model of several files, each of which has its own versions.")
    (file,) = _open_files(client, bucket, [key], version_id)
    return file


def _open_files(client: S3Client, bucket: str, keys: Sequence[str], version_id: str | None = None) -> list[File]:
    if not all(keys):
        raise ArgumentError(f"s3://{bucket} is a bucket and no safetensors file: name the object.", bucket=bucket)
    remotes = [RemoteObject(client._access, bucket, key, version_id=version_id) for key in keys]
    return read_beginnings(remotes, _HEAD_SIZE, _finish)


def load_tensors(
    wanted: Sequence[tuple[File, str]], device: torch.device, progress: Callable[[int], object] | None = None
) -> dict[str, torch.Tensor]:
    """Read tensors of files whose headers were read.

    Args:
        wanted: File and name of each.
        device: Where they are to be.
        progress: Is told how many bytes more have arrived.
    """
    kinds = [kind_of(file.header.tensors[name], name) for file, name in wanted]
    if device.type == "cpu":
        tensors = [empty(*kind) for kind in kinds]
        _fill(
            [(file, file.header.tensors[name], tensor) for (file, name), tensor in zip(wanted, tensors, strict=True)],
            progress,
        )
        return {name: tensor for (_, name), tensor in zip(wanted, tensors, strict=True)}
    loaded: dict[str, torch.Tensor] = {}
    for stage in _stages([(file, file.header.tensors[name]) for file, name in wanted]):
        staged = [empty(*kinds[index], pinned=device.type == "cuda") for index in stage]
        chosen = [wanted[index] for index in stage]
        _fill(
            [(file, file.header.tensors[name], tensor) for (file, name), tensor in zip(chosen, staged, strict=True)],
            progress,
        )
        # torch keeps pinned memory until the copies out of it are done.
        for (_, name), tensor in zip(chosen, staged, strict=True):
            loaded[name] = tensor.to(device, non_blocking=device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return {name: loaded[name] for _, name in wanted}


def _stages(tensors: Sequence[tuple[File, TensorInfo]]) -> list[list[int]]:
    """Return the indices of tensors that are staged together; those of one file, if it must be proven as a whole."""
    stages: list[list[int]] = []
    by_file: dict[File, list[int]] = {}
    room = 0
    for index, (file, info) in enumerate(tensors):
        if file.remote.is_strict:
            by_file.setdefault(file, []).append(index)
            continue
        if not stages or _size(info) > room:
            stages.append([])
            room = _STAGE_SIZE
        stages[-1].append(index)
        room -= _size(info)
    return [*stages, *by_file.values()]


def _size(info: TensorInfo) -> int:
    return info.stop - info.start


def kind_of(info: TensorInfo, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return dtype and shape of a tensor as torch has them."""
    return torch_dtype(info.dtype, name), shape_in_items(info.dtype, info.shape, name)


def _fill(tensors: Sequence[tuple[File, TensorInfo, torch.Tensor]], progress: Callable[[int], object] | None) -> None:
    """Receive tensors into their memory, from all files at the same time."""
    by_file: dict[File, list[tuple[tuple[int, int], memoryview]]] = {}
    contents: dict[File, list[tuple[int, memoryview]]] = {}
    for file, info, tensor in tensors:
        view = bytes_of(tensor)
        contents.setdefault(file, []).append((info.start, view))
        if info.stop <= len(file.head):
            view[:] = file.head[info.start : info.stop]
        else:
            by_file.setdefault(file, []).append(((info.start, info.stop), view))
    reads = []
    for file, wanted in by_file.items():
        ranges = [each for each, _ in wanted]
        reads.append((file.remote, file.remote.vector(ranges, [view for _, view in wanted]), ranges))
    if reads:
        run(reads[0][0].access, [get for _, gets, _ in reads for get in gets], progress)
    for remote, gets, ranges in reads:
        remote.conclude_vector(gets, ranges)
    for file in list(contents):
        file.prove(contents.pop(file))


class SafeOpen:
    """A safetensors file, open for reading; made by ``safe_open``. Not to be used by two threads at the same time."""

    def __init__(self, file: File, device: torch.device, context: ClientContext) -> None:
        self._file = file
        self._device = device
        self._context = context
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<SafeOpen {self._file} {state} tensors={len(self._file.header.tensors)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and the client if it was made for this file."""
        self._closed = True
        self._context.close()

    def keys(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._file.header.tensors)

    def offset_keys(self) -> list[str]:
        """Return the names of all tensors in the order of their bytes."""
        return list(self._file.header.tensors)

    def metadata(self) -> Mapping[str, str] | None:
        """Return the text that its writer added; None if there is none."""
        metadata = self._file.header.metadata
        return None if metadata is None else dict(metadata)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            ArgumentError: There is none of this name.
            S3Error: See ``load_file``.
        """
        self._info(name)
        return load_tensors([(self._file, name)], self._device)[name]

    def get_slice(self, name: str) -> SafeSlice:
        """Return what reads slices of a tensor; nothing is read yet.

        Raises:
            ArgumentError: There is none of this name.
        """
        return SafeSlice(self, name, self._info(name))

    def _info(self, name: str) -> TensorInfo:
        if self._closed:
            raise ClosedError(f"{self._file} was closed: open it again.")
        if name not in self._file.header.tensors:
            raise ArgumentError(f"{self._file} has no tensor {name!r}.")
        return self._file.header.tensors[name]

    def _read_slice(self, name: str, index: object) -> torch.Tensor:
        info = self._info(name)
        dtype, shape = kind_of(info, name)
        selection = select(shape, index)
        ranges, fetched = ranges_of(shape, selection.bounds, dtype.itemsize)
        tensor = empty(dtype, [stop - start for start, stop in fetched])
        if ranges:
            _fill_ranges(self._file, [(info.start + left, info.start + right) for left, right in ranges], tensor)
        inner = zip(selection.bounds, fetched, strict=True)
        cut = tensor
        for dimension, ((start, stop), (begin, _)) in enumerate(inner):
            cut = cut.narrow(dimension, start - begin, stop - start)
        return cut.contiguous().reshape(selection.shape).to(self._device)


class SafeSlice:
    """Reads slices of one tensor: of its bytes, those that are needed; made by ``SafeOpen.get_slice``."""

    def __init__(self, file: SafeOpen, name: str, info: TensorInfo) -> None:
        self._file = file
        self._name = name
        self._info = info

    def __repr__(self) -> str:
        return f"<SafeSlice {self._name!r} {self._info.dtype} {list(self._info.shape)}>"

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(shape_in_items(self._info.dtype, self._info.shape, self._name))

    def get_dtype(self) -> str:
        """Return the dtype as the format names it, such as ``BF16``."""
        return self._info.dtype

    def __getitem__(self, index: object) -> torch.Tensor:
        """Read a slice.

        Args:
            index: Integers, slices without a step, and ``...``, as torch understands them.

        Raises:
            ArgumentError: It is out of range or of another kind.
            S3Error: See ``load_file``.
        """
        return self._file._read_slice(self._name, index)  # of the same module


def _fill_ranges(file: File, ranges: Sequence[tuple[int, int]], tensor: torch.Tensor) -> None:
    """Receive ranges one behind the other into a tensor."""
    remote = file.remote
    view, begin, views = bytes_of(tensor), 0, []
    for start, stop in ranges:
        views.append(view[begin : begin + stop - start])
        begin += stop - start
    gets = remote.vector(ranges, views)
    run(remote.access, gets)
    remote.conclude_vector(gets, ranges)
    file.prove([(start, view) for (start, _), view in zip(ranges, views, strict=True)])


def _where(remote: RemoteObject) -> str:
    return f"s3://{remote.bucket}/{remote.key}"


def device_of(device: torch.device | str | int) -> torch.device:
    """Return the device that is meant.

    Raises:
        ArgumentError: There is no such device, or it cannot hold bytes.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device={device!r} is no device of torch: {error}") from error
    if found.type == "meta":
        raise ArgumentError("device='meta' holds no bytes: read the shapes by safe_open(...).get_slice(name).")
    return found


def names_of(keys: Iterable[str]) -> list[str]:
    """Return names of tensors, once each.

    Raises:
        ArgumentTypeError: They are none.
    """
    names = [keys] if isinstance(keys, str) else list(keys)
    if isinstance(keys, str) or not all(isinstance(name, str) for name in names):
        raise ArgumentTypeError(f"keys must be names of tensors, such as ['weight'], got {keys!r}.")
    return list(dict.fromkeys(names))

"""The safetensors format: what a header says, checked before anything is allocated. Pure.

A file is the length of its header (8 bytes, little-endian), the header (JSON: names to dtype, shape and data_offsets),
and the bytes of all tensors, little-endian and in C order (https://github.com/huggingface/safetensors#format). Tensors
follow one another without gaps, from the header's end to the end of the file; so no byte has two meanings, or none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from s3torch.errors import ArgumentError, CheckpointFormatError

__all__ = [
    "BITS",
    "INDEX_SUFFIX",
    "LENGTH_SIZE",
    "MAX_HEADER_SIZE",
    "Header",
    "TensorInfo",
    "build_header",
    "is_shard_name",
    "parse_header",
    "parse_header_size",
    "parse_index",
    "shard_names",
    "split_into_shards",
]

# Bits of an item. F4 and F6 are packed; a tensor of them ends at a full byte.
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

LENGTH_SIZE = 8
# What the index of a model in several files is called: its name, and this.
INDEX_SUFFIX = ".index.json"
# Of the reference implementation, in bytes.
MAX_HEADER_SIZE = 100_000_000
_METADATA = "__metadata__"
_LARGEST = 2**63 - 1  # items of a tensor, and bytes of a file
_ALIGNMENT = 8  # where the data begins, in bytes from the start of the file


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: As the format names it, such as ``BF16``.
        shape: In items.
        start: Its first byte in the file.
        stop: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    Attributes:
        tensors: By name, in the order of their bytes.
        metadata: Text that its writer added; None if there is none.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] | None


def parse_header_size(head: bytes, file_size: int, where: str) -> int:
    """Return how many bytes the header has.

    Args:
        head: At least the first 8 bytes of the file.
        file_size: In bytes.
        where: The file, for messages.

    Raises:
        CheckpointFormatError: The file is too short, or the header longer than permitted or than the file.
    """
    if len(head) < LENGTH_SIZE:
        raise _damaged(where, f"it has {len(head)} bytes, and the length of the header alone takes {LENGTH_SIZE}")
    size = int.from_bytes(head[:LENGTH_SIZE], "little")
    if size > MAX_HEADER_SIZE:
        raise _damaged(where, f"its header would have {size} bytes, and {MAX_HEADER_SIZE} are permitted")
    if LENGTH_SIZE + size > file_size:
        raise _damaged(where, f"its header would have {size} bytes, and the whole file has {file_size}")
    return size


def parse_header(text: bytes, file_size: int, where: str) -> Header:
    """Parse a header and check all that it says.

    Fields of a tensor that the format does not define are ignored, as the reference implementation does.

    Args:
        text: The header, without its length.
        file_size: In bytes.
        where: The file, for messages.

    Raises:
        CheckpointFormatError: It is no header, contradicts itself or the file's size, or has a dtype of a newer format.
    """
    document = _parse_json(text, where)
    metadata = document.pop(_METADATA, None)
    if metadata is not None and not _is_text_by_name(metadata):
        raise _damaged(where, f"its {_METADATA} is not text by name")
    begin = LENGTH_SIZE + len(text)
    found = {name: _parse_tensor(name, entry, begin, where) for name, entry in document.items()}
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = begin
    for name, info in tensors.items():
        if info.start != end:
            fault = "overlaps the one before it" if info.start < end else f"leaves {info.start - end} bytes before it"
            raise _damaged(where, f"tensor {_shown(name)} {fault}")
        end = info.stop
    if end != file_size:
        raise _damaged(where, f"its tensors end at byte {end}, and the file has {file_size} bytes")
    return Header(tensors, metadata)


def parse_index(text: bytes, where: str) -> dict[str, list[str]]:
    """Parse the index of a sharded model (``model.safetensors.index.json``).

    Args:
        text: JSON with a ``weight_map`` of tensor names to files beside the index.
        where: The index, for messages.

    Returns:
        The names of each file's tensors.

    Raises:
        CheckpointFormatError: It is no such index, or names a file that does not lie beside or below it.
    """
    weight_map = _parse_json(text, where).get("weight_map")
    if not _is_text_by_name(weight_map) or not weight_map:
        raise _damaged(where, "its weight_map does not map names of tensors to names of files")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not file or any(part in ("", ".", "..") for part in file.split("/")):
            raise _damaged(where, f"tensor {_shown(name)} would lie in {_shown(file)}, which is no file beside it")
        shards.setdefault(file, []).append(name)
    return shards


def build_header(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[str]]:
    """Return what a file begins with, and the order in which its tensors follow.

    Tensors of larger items come first, and those of the same dtype by name, so that all are aligned.

    Args:
        tensors: Dtype, shape and size in bytes by name.
        metadata: Text by name; None for none.

    Raises:
        ArgumentError: ``metadata`` is not text by name, a name is not permitted, or the header would be too long.
    """
    if metadata is not None and not _is_text_by_name(metadata):
        raise ArgumentError(f"metadata must map str to str, got {metadata!r}.")
    if _METADATA in tensors:
        raise ArgumentError(f"A tensor cannot have the name {_METADATA!r}: the format keeps it for metadata.")
    order = sorted(tensors, key=lambda name: (-BITS[tensors[name][0]], tensors[name][0], name))
    document: dict[str, object] = {} if metadata is None else {_METADATA: dict(metadata)}
    end = 0
    for name in order:
        dtype, shape, size = tensors[name]
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"A name or metadata cannot be written as UTF-8: {error.reason}.") from error
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_SIZE:
        raise ArgumentError(f"The header would have {len(text)} bytes, and the format permits {MAX_HEADER_SIZE}.")
    return len(text).to_bytes(LENGTH_SIZE, "little") + text, order


def split_into_shards(sizes: Mapping[str, int], max_shard_size: int) -> list[list[str]]:
    """Return the names of each shard's tensors, in the order given.

    Args:
        sizes: Bytes by name.
        max_shard_size: Bytes of a shard's tensors at most; a larger tensor is a shard of its own.
    """
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= size
    return shards


def shard_names(key: str, count: int, token: str) -> list[str]:
    """Return the keys of a model's shards: of ``m.safetensors`` they are ``m-TOKEN-00001-of-00002.safetensors``, ...

    Args:
        key: Of the model.
        count: How many there are.
        token: What no other save of this model has: shards of two saves never replace each other.
    """
    stem = key.removesuffix(".safetensors")
    return [f"{stem}-{token}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


_SHARD_NAME = re.compile(r".*-[0-9]{5}-of-[0-9]{5}\.(?:safetensors|bin)", re.DOTALL)


def is_shard_name(name: str) -> bool:
    """Return whether a file is called as ``save_file`` and Hugging Face's libraries call a part of a model."""
    return _SHARD_NAME.fullmatch(name) is not None


def _parse_json(text: bytes, where: str) -> dict[str, object]:
    if not text.startswith(b"{"):
        raise _damaged(where, f"a JSON object must stand where {text[:16]!r} does")
    try:
        # Duplicate names are found at any depth; NaN and Infinity are no JSON.
        document = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its JSON cannot be read ({str(error)[:200] or type(error).__name__})") from error
    if not isinstance(document, dict):
        raise AssertionError("JSON that begins with a brace and is no object")  # noqa: TRY004  # our own bug
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {_shown(twice)} occurs twice")
    for name in document:
        name.encode()  # a lone surrogate, which is a ValueError
    return document


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _parse_tensor(name: str, entry: object, begin: int, where: str) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _damaged(where, f"tensor {_shown(name)} is not described by a JSON object")
    fields: list[object] = [entry.get(field) for field in ("dtype", "shape", "data_offsets")]
    dtype, shape, offsets = fields
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(where, f"tensor {_shown(name)} has the dtype {_shown(dtype)}, which this version does not know")
    if not _are_sizes(shape):
        raise _damaged(where, f"tensor {_shown(name)} has the shape {_shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(where, f"tensor {_shown(name)} has the data_offsets {_shown(offsets)}")
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits > _LARGEST:
            raise _damaged(where, f"tensor {_shown(name)} has the shape {_shown(shape)}, more than memory can have")
    start, stop = offsets
    if bits != 8 * (stop - start):
        raise _damaged(
            where,
            f"tensor {_shown(name)} has {stop - start} bytes, where {dtype} of shape {_shown(shape)} takes {bits} bits",
        )
    return TensorInfo(dtype, tuple(shape), begin + start, begin + stop)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST for item in value)


def _is_text_by_name(value: object) -> TypeGuard[Mapping[str, str]]:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(name, str) and isinstance(text, str) for name, text in value.items())


def _shown(value: object) -> str:
    text = ascii(value)  # what is damaged may hold anything
    return text if len(text) <= 100 else f"{text[:100]}..."


def _damaged(where: str, fault: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{where} is no safetensors file of a known format, or damaged: {fault}.")

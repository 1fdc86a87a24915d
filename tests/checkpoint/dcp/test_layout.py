"""Where the elements of a stored tensor lie: what layout reads is what torch reads, or it says that it cannot tell."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from s3torch.checkpoint.dcp.layout import (
    ENDS,
    Layout,
    archive_layout,
    safetensors_header_size,
    safetensors_layout,
)
from s3torch.errors import S3Error

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
UNKNOWN = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]
SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


def _tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor whose elements differ, as far as the dtype can."""
    values = torch.arange(math.prod(shape)).remainder(101) + 1
    return (values.remainder(2) if dtype is torch.bool else values).to(dtype).reshape(shape)


def _archive(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _read(archive: bytes, ends: int = ENDS) -> Layout | None:
    return archive_layout(archive[:ends], archive[-ends:], len(archive))


def _elements(content: bytes, layout: Layout) -> torch.Tensor:
    return layout.tensor(memoryview(bytearray(content[layout.start : layout.stop])))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype is other.dtype and one.shape == other.shape and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@given(st.sampled_from(DTYPES), SHAPES)
def test_archives(dtype, shape):
    """A plain tensor of any usual dtype and shape is where torch.load finds it."""
    archive = _archive(_tensor(dtype, shape))
    layout = _read(archive)
    assert layout is not None
    assert _is_same(_elements(archive, layout), torch.load(io.BytesIO(archive)))


@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_rows(dtype, shape, data):
    """Rows are those that torch slices."""
    archive = _archive(_tensor(dtype, tuple(shape)))
    first = data.draw(st.integers(0, shape[0]))
    count = data.draw(st.integers(0, shape[0] - first))
    rows = _read(archive).rows(first, count)
    assert _is_same(_elements(archive, rows), torch.load(io.BytesIO(archive))[first : first + count])


@given(st.integers(0, 3), st.sampled_from(DTYPES))
def test_a_tensor_at_any_address(shift, dtype):
    """Memory that is not aligned makes the same tensor."""
    tensor = _tensor(dtype, (5, 3))
    content = bytearray(shift) + bytearray(_bytes(tensor).numpy().tobytes())
    assert _is_same(Layout(0, dtype, (5, 3)).tensor(memoryview(content)[shift:]), tensor)


@given(st.permutations(range(3)), st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_order_of_elements(order, shape):
    """A tensor whose elements lie in another order than that of its indices has no layout, unless it is the same."""
    archive = _archive(_tensor(torch.int32, tuple(shape)).permute(order))
    layout = _read(archive)
    if layout is not None:
        assert _is_same(_elements(archive, layout), torch.load(io.BytesIO(archive)))
    if sorted(order) != order and min(shape) > 1:
        assert layout is None


class _Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(20)[5:],
        torch.arange(20)[:5],
        torch.arange(20)[::2],
        torch.ones(1).expand(5),
        torch.ones(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.ones(3, dtype=torch.complex64).conj().imag,
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(3).as_subclass(_Subclass),
        torch.empty(3, device="meta"),
        [torch.ones(3)],
        [torch.ones(3), torch.ones(3)],
        {"a": torch.ones(3)},
        5,
        "text",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_plain_tensor(value):
    """A view of a larger storage, a tensor of another kind and what is no tensor have no layout."""
    assert _read(_archive(value)) is None


@pytest.mark.parametrize("dtype", UNKNOWN)
def test_unknown_dtypes(dtype):
    """A dtype that torch.save writes in another way has no layout, or the right one."""
    archive = _archive(torch.arange(6, dtype=torch.uint8).to(dtype).reshape(2, 3))
    layout = _read(archive)
    assert layout is None or _is_same(_elements(archive, layout), torch.load(io.BytesIO(archive)))


def _rewritten(archive: bytes, replaced: dict[str, bytes | None], **options: int) -> bytes:
    """Return a zip archive with other records; None leaves one out."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(file, "w", **options) as after:
        for name in before.namelist():
            content = replaced.get(name.partition("/")[2], before.read(name))
            if content is not None:
                after.writestr(name, content)
    return file.getvalue()


def test_another_writer():
    """An archive that another program has written is read, too."""
    tensor = _tensor(torch.float32, (4, 3))
    archive = _rewritten(_archive(tensor), {})
    assert _is_same(_elements(archive, _read(archive)), tensor)


@pytest.mark.parametrize(
    ("replaced", "options"),
    [
        ({"byteorder": b"big" if sys.byteorder == "little" else b"little"}, {}),
        ({"byteorder": None}, {}),
        ({"data.pkl": None}, {}),
        ({"data.pkl": b"\x80\x02N."}, {}),
        ({"data.pkl": b"\x80\x02"}, {}),
        ({"data.pkl": b""}, {}),
        ({"data.pkl": b"cos\nsystem\n(S'false'\ntR."}, {}),
        ({"data/0": None}, {}),
        ({"data/0": b"short"}, {}),
        ({"data/0": bytes(100)}, {}),
        ({}, {"compression": zipfile.ZIP_DEFLATED}),
    ],
)
def test_other_archives(replaced, options):
    """Another byte order, compression, and records that are missing or do not fit together have no layout."""
    assert _read(_rewritten(_archive(_tensor(torch.float32, (4, 3))), replaced, **options)) is None


def test_a_shape_that_none_is():
    """Negative numbers whose product fits have no layout."""
    with zipfile.ZipFile(io.BytesIO(_archive(_tensor(torch.float32, (2, 3))))) as archive:
        pickled = archive.read("archive/data.pkl")
    shape, stride = b"K\x02K\x03\x86", b"K\x03K\x01\x86"
    assert (pickled.count(shape), pickled.count(stride)) == (1, 1)
    wrong = pickled.replace(shape, b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86").replace(stride, b"K\x01K\x01\x86")
    assert _read(_rewritten(_archive(_tensor(torch.float32, (2, 3))), {"data.pkl": wrong})) is None


def test_no_code_is_run():
    """A pickle that calls something is not obeyed."""
    archive = _rewritten(_archive(torch.ones(3)), {"data.pkl": b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."})
    assert _read(archive) is None


LARGE = _archive(_tensor(torch.float32, (64, 64)))


@given(st.integers(0, len(LARGE)))
def test_cut_off(length):
    """What is cut off at any byte has no layout."""
    cut = LARGE[:length]
    assert _read(cut) is None or cut == LARGE


@given(st.one_of(st.integers(0, 1023), st.integers(len(LARGE) - 1023, len(LARGE) - 1)), st.integers(1, 255))
def test_damaged_ends(place, mask):
    """A damaged byte around the elements never leads to other elements."""
    damaged = bytearray(LARGE)
    damaged[place] ^= mask
    assert _read(bytes(damaged)) in (None, _read(LARGE))


@pytest.mark.parametrize("make", [_archive, lambda tensor: _rewritten(_archive(tensor), {})], ids=["torch", "zipfile"])
@pytest.mark.parametrize("field", [26, 28])
@pytest.mark.parametrize("shift", [-16, -8, -4, 4, 8, 16])
def test_lengths_before_the_elements(make, field, shift):
    """Another length of the name or the extra field, which no checksum protects, does not shift the elements."""
    archive = bytearray(make(_tensor(torch.float32, (64, 64))))
    with zipfile.ZipFile(io.BytesIO(archive)) as records:
        place = records.getinfo(records.namelist()[0].partition("/")[0] + "/data/0").header_offset + field
    wrong = max(0, int.from_bytes(archive[place : place + 2], "little") + shift)
    archive[place : place + 2] = wrong.to_bytes(2, "little")
    assert _read(bytes(archive)) in (None, _read(make(_tensor(torch.float32, (64, 64)))))


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 10**6))
def test_noise(head, tail, size):
    """What is no archive at all has no layout."""
    assert archive_layout(head, tail, max(size, len(head), len(tail))) is None


@pytest.mark.parametrize("ends", [22, 100, 500, 800])
def test_ends_that_do_not_reach(ends):
    """Where head and tail are too short to tell, nothing is told."""
    layout = _read(LARGE, ends)
    assert layout is None or _is_same(_elements(LARGE, layout), torch.load(io.BytesIO(LARGE)))
    assert _read(LARGE, 100) is None


# --- safetensors ------------------------------------------------------------------------------------------------------


def _header(content: bytes) -> tuple[bytes, int]:
    """Return the header, and where it ends."""
    size = safetensors_header_size(content[:8], "the file")
    return content[8 : 8 + size], 8 + size


@given(st.sampled_from([*DTYPES, *UNKNOWN]), SHAPES)
def test_safetensors(dtype, shape):
    """A tensor of a safetensors file is where the package has written it."""
    if dtype is torch.complex128:
        return  # which the format does not have
    tensor = _tensor(torch.int64, shape).to(dtype)
    content = save({"a": torch.zeros(3), "w": tensor})
    layout = safetensors_layout(*_swap(_header(content)), "the file")
    assert _is_same(_elements(content, layout), tensor)


def _swap(header: tuple[bytes, int]) -> tuple[bytes, str, int]:
    return header[0], "w", header[1]


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**63])
def test_no_safetensors_header(length):
    """A length that no header has is named as damage."""
    with pytest.raises(S3Error, match=r"the file should have a safetensors header and has none"):
        safetensors_header_size(length.to_bytes(8, "little"), "the file")


GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff\xff",
        b"{",
        b"[]",
        b"5",
        b"{}",
        json.dumps({"w": None}).encode(),
        json.dumps({"w": []}).encode(),
        *(json.dumps({"w": {key: GOOD[key] for key in GOOD if key != left_out}}).encode() for left_out in GOOD),
        *(
            json.dumps({"w": {**GOOD, **wrong}}).encode()
            for wrong in (
                {"dtype": "F31"},
                {"dtype": []},
                {"shape": None},
                {"shape": [2, 4]},
                {"shape": [2, "3"]},
                {"shape": [-2, -3]},
                {"shape": [2.0, 3.0]},
                {"shape": [True, 6]},
                {"data_offsets": [0]},
                {"data_offsets": [0, 25]},
                {"data_offsets": [24, 0]},
                {"data_offsets": [-24, 0]},
                {"data_offsets": [0.0, 24.0]},
                {"data_offsets": ["0", "24"]},
            )
        ),
    ],
)
def test_damaged_safetensors_headers(header):
    """A header that does not describe the tensor is named as damage, with the file."""
    with pytest.raises(S3Error, match=r"safetensors header of the file (says nothing|contradicts itself) .*damaged"):
        safetensors_layout(header, "w", 100, "the file")


@given(st.binary(max_size=100))
def test_noise_for_a_safetensors_header(header):
    """Whatever stands there, it is an error that names it."""
    with pytest.raises(S3Error, match=re.escape("the file")):
        safetensors_layout(header, "w", 100, "the file")

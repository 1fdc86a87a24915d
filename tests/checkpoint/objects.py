"""Random objects to save, and what can be told of an object once it is loaded: the oracle's two halves.

``states`` draws what torch.save can save. ``described`` turns an object into plain values that are equal if, and only
if, no program could tell two objects apart: types, values, dtypes, strides, attributes, and who shares what with whom.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from typing_extensions import Self

__all__ = [
    "SAFE_CLASSES",
    "AllowedTensor",
    "Drawn",
    "OwnDict",
    "Pair",
    "Shared",
    "WrapperTensor",
    "bytes_of",
    "change",
    "described",
    "dtypes",
    "one_rank",
    "states",
    "tensor_of",
]


class AllowedTensor(torch.Tensor):
    """A subclass that the user has allowed."""


class OwnParameter(nn.Parameter):
    """A parameter of a class of its own."""


class WrapperTensor(torch.Tensor):
    """A tensor whose bytes are in another, as a DTensor's are."""

    inner: torch.Tensor

    def __new__(cls, inner: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(arguments[0].inner)
        raise NotImplementedError(function)


class OwnDict(dict):  # type: ignore[type-arg]
    """A dict that can have attributes."""


Pair = namedtuple("Pair", ["left", "right"])  # noqa: PYI024  # the kind that most programs use


@dataclasses.dataclass
class Shared:
    """A dataclass of two values."""

    left: Any
    right: Any


class Looking:
    """Looks at the values of its tensor as soon as it is unpickled.

    Attributes:
        total: What it has seen.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.total: bytes | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.total = bytes_of(self.tensor.untyped_storage())


# What torch.load may make with ``weights_only=True`` once it was told so.
SAFE_CLASSES: list[Any] = [AllowedTensor, OwnParameter, WrapperTensor, OwnDict, Pair, Shared, UserDict, Looking]

_INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
_FLOATS = ["float16", "bfloat16", "float32", "float64"]
_COMPLEX = ["complex32", "complex64", "complex128"]
_SMALL_FLOATS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
_PACKED = ["float4_e2m1fn_x2"]
# Items of a storage: nothing, one, some, and more than is fetched with the directory (64 KiB) for all dtypes.
_ITEMS = (0, 1, 7, 30, 1000, 70_000)


def dtypes() -> list[torch.dtype]:
    """Return all dtypes that this torch has and that can be saved."""
    names = ["bool", *_INTEGERS, *_FLOATS, *_COMPLEX, *_SMALL_FLOATS, *_PACKED]
    return [getattr(torch, name) for name in names if hasattr(torch, name)]


def tensor_of(dtype: torch.dtype, items: int, seed: int) -> torch.Tensor:
    """Return a tensor of one dimension of random bytes; those of bools are 0 and 1."""
    size = items * dtype.itemsize
    chance = torch.Generator().manual_seed(seed)
    content = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=chance)
    return content.view(dtype) if size else torch.empty(0, dtype=dtype)


@contextmanager
def one_rank() -> Iterator[DeviceMesh]:
    """Set up a process group of this process alone, and return its mesh."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield DeviceMesh("cpu", [0])
    finally:
        torch.distributed.destroy_process_group()


_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda tensor: tensor,
    "part": lambda tensor: tensor[len(tensor) // 3 :],
    "end": lambda tensor: tensor[len(tensor) // 2 : len(tensor) // 2 + 2],
    "every other": lambda tensor: tensor[::2],
    "rows": lambda tensor: tensor[: len(tensor) // 2 * 2].view(2, -1),
    "transposed": lambda tensor: tensor[: len(tensor) // 2 * 2].view(2, -1).t(),
    "expanded": lambda tensor: tensor[:1].expand(3, -1),
    "overlapping": lambda tensor: tensor.as_strided((max(0, len(tensor) - 1), min(2, len(tensor))), (1, 1)),
    "scalar": lambda tensor: tensor[0] if len(tensor) else tensor.view(0, 1),
}


def _sparse(tensor: torch.Tensor, layout: torch.layout) -> torch.Tensor:
    square = tensor.float().nan_to_num()[:400].view(-1, 1) if tensor.dim() == 1 else tensor.float().nan_to_num()
    return square.to_sparse() if layout is torch.sparse_coo else square.to_sparse_csr()


def _quantized(tensor: torch.Tensor, *, by_channel: bool) -> torch.Tensor:
    values = tensor_of(torch.int8, max(1, tensor.numel()), 1).float().view(-1, 1)
    if not by_channel:
        return torch.quantize_per_tensor(values, 0.5, 3, torch.qint8)
    scales = torch.linspace(0.1, 2, len(values), dtype=torch.float64)
    return torch.quantize_per_channel(values, scales, torch.arange(len(values)) % 5, 0, torch.qint8)


def _nested(tensor: torch.Tensor, layout: torch.layout) -> torch.Tensor:
    flat = tensor.reshape(-1).float()
    return torch.nested.nested_tensor([flat, flat[: len(flat) // 2]], layout=layout)


def _can_have_gradients(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def _with_note(tensor: torch.Tensor) -> torch.Tensor:
    noted = tensor.view(tensor.shape)
    noted.note = ["a", torch.arange(3)]  # type: ignore[attr-defined]
    return noted


def _if_gradients(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: make(tensor) if _can_have_gradients(tensor) else tensor


def _distributed(tensor: torch.Tensor) -> torch.Tensor:
    mesh = DeviceMesh("cpu", [0])
    if tensor.is_conj() or tensor.is_neg() or not tensor.dim():
        return DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False)


# What can be made of a tensor, beside itself.
_KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "plain": lambda tensor: tensor,
    "parameter": lambda tensor: nn.Parameter(tensor, requires_grad=_can_have_gradients(tensor)),
    "frozen": lambda tensor: nn.Parameter(tensor, requires_grad=False),
    "own parameter": _if_gradients(OwnParameter),
    "leaf": _if_gradients(lambda tensor: tensor.detach().requires_grad_()),
    "non-leaf": _if_gradients(lambda tensor: tensor.detach().requires_grad_() * 2),
    "buffer": lambda tensor: nn.Buffer(tensor) if hasattr(nn, "Buffer") else tensor,
    "noted": _with_note,
    "allowed": lambda tensor: tensor.as_subclass(AllowedTensor),
    "wrapper": WrapperTensor,
    "conjugate": lambda tensor: tensor.conj(),
    "negative": lambda tensor: torch._neg_view(tensor) if _can_have_gradients(tensor) else tensor,
    "imaginary": lambda tensor: tensor.conj().imag if tensor.dtype is torch.complex64 else tensor,
    "storage": lambda tensor: tensor.untyped_storage(),
    "meta": lambda tensor: torch.empty_like(tensor, device="meta"),
    "sparse": lambda tensor: _sparse(tensor, torch.sparse_coo),
    "csr": lambda tensor: _sparse(tensor, torch.sparse_csr),
    "quantized": lambda tensor: _quantized(tensor, by_channel=False),
    "quantized by channel": lambda tensor: _quantized(tensor, by_channel=True),
    "nested": lambda tensor: _nested(tensor, torch.strided),
    "jagged": lambda tensor: _nested(tensor, torch.jagged),
    "looking": Looking,
    "weight_norm": lambda tensor: torch.nn.utils.weight_norm(nn.Linear(3, 2)),
    "module": lambda tensor: nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(3)).state_dict(),
    "lazy": lambda tensor: nn.LazyLinear(3).weight,
    "dtensor": _distributed,
    "distributed parameter": lambda tensor: nn.Parameter(_distributed(tensor), requires_grad=False),
}


# Those that torch.load takes only with ``weights_only=False``, and those that need a process group.
_MODULES = {"weight_norm"}
_DISTRIBUTED = {"dtensor", "distributed parameter"}


class Drawn:
    """What was drawn; not every tensor has a repr, so it is told how each was made.

    Attributes:
        state: The object.
        recipe: Of what its tensors were made.
    """

    def __init__(self, state: Any, recipe: list[str]) -> None:
        self.state = state
        self.recipe = recipe

    def __repr__(self) -> str:
        return f"Drawn({self.recipe})"


@st.composite
def states(
    draw: st.DrawFn, *, modules: bool = True, distributed: bool = True, only: tuple[str, ...] | None = None
) -> Drawn:
    """Draw something that torch.save can save.

    Args:
        draw: Hypothesis'.
        modules: Whether there may be whole modules, which need ``weights_only=False``.
        distributed: Whether there may be DTensors: there must be a process group then.
        only: Names of the kinds of tensors; None for all.
    """
    unwanted = (set() if modules else _MODULES) | (set() if distributed else _DISTRIBUTED)
    kinds = [name for name in _KINDS if name not in unwanted and (only is None or name in only)]
    pool, recipe = [], []
    with warnings.catch_warnings():  # of what torch calls prototypes, or deprecated
        warnings.simplefilter("ignore")
        for number in range(draw(st.integers(1, 4))):
            dtype, items = draw(st.sampled_from(dtypes())), draw(st.sampled_from(_ITEMS))
            base = tensor_of(dtype, items, number)
            recipe.append(f"{items} of {dtype}")
            for _ in range(draw(st.integers(1, 3))):  # which share the memory
                view, kind = draw(st.sampled_from(sorted(_VIEWS))), draw(st.sampled_from(kinds))
                pool.append(_made(kind, _VIEWS[view](base)))
                recipe.append(f"{view}, {kind}")
    leaves = st.one_of(
        st.integers(0, len(pool) - 1).map(lambda index: pool[index]),  # one object may be met several times
        st.sampled_from([None, True, 3, 2**70, 2.5, "text", b"bytes", torch.float16, torch.Size([2, 3])]),
        st.just(torch.device("cpu")),
    )
    contents = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abcde"), inner, max_size=4),
            st.dictionaries(st.sampled_from("abcde"), inner, max_size=3).map(OrderedDict),
            st.builds(_own_dict, st.dictionaries(st.sampled_from("ab"), inner, max_size=2), inner),
            st.builds(_noted_dict, st.dictionaries(st.sampled_from("ab"), inner, max_size=2), inner),
            st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(UserDict),
            st.builds(Pair, inner, inner),
            st.builds(Shared, inner, inner),
        ),
        max_leaves=8,
    )
    return Drawn({"pool": pool, "state": draw(contents)}, recipe)


def _made(kind: str, view: torch.Tensor) -> Any:
    """Return something made of a tensor; the tensor itself where torch has no such thing for its dtype."""
    try:
        return _KINDS[kind](view)
    except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
        return view


def _own_dict(items: dict[str, Any], note: Any) -> OwnDict:
    made = OwnDict(items)
    made.note = note  # type: ignore[attr-defined]
    return made


def _noted_dict(items: dict[str, Any], note: Any) -> OrderedDict[str, Any]:
    made = OrderedDict(items)
    made._metadata = note  # type: ignore[attr-defined]  # as state dicts have it
    return made


def described(value: object) -> Any:
    """Return all that can be told of an object, as plain values."""
    return _Describer().of(value)


class _Describer:
    """Describes objects; those that were described before by their number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._kept: list[object] = []  # an id must stay its object's own

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device, torch.layout)):
            return type(value).__name__, repr(value)
        if id(value) in self._numbers:
            return "again", self._numbers[id(value)]
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, torch.Tensor):
            return kind, *self._tensor(value)
        if isinstance(value, torch.UntypedStorage):
            return kind, self._storage(value)
        if isinstance(value, (DeviceMesh, type)) or type(value).__module__.startswith("torch.distributed"):
            return kind, repr(value)
        parts: list[Any] = [kind]
        if isinstance(value, dict):
            parts.append([(self.of(key), self.of(each)) for key, each in value.items()])
        elif isinstance(value, (list, tuple)):
            parts.append([self.of(each) for each in value])
        elif isinstance(value, (set, frozenset)):
            parts.append(sorted(map(repr, value)))
        if hasattr(value, "__dict__"):
            parts.append([(name, self.of(each)) for name, each in sorted(vars(value).items())])
        return tuple(parts)

    def _tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        facts = tensor.dtype, str(tensor.layout), str(tensor.device), tensor.requires_grad
        if tensor.layout is torch.jagged:  # its sizes are symbols, other ones each time
            return *map(repr, facts), self._values(tensor)
        shape = () if tensor.is_nested or type(tensor) is nn.UninitializedParameter else tuple(tensor.shape)
        attributes = [(name, self.of(each)) for name, each in sorted(vars(tensor).items())]
        return *map(repr, facts), shape, attributes, self._values(tensor)

    def _values(self, tensor: torch.Tensor) -> Any:
        if type(tensor) is nn.UninitializedParameter:
            return ()
        if isinstance(tensor, DTensor):
            return self.of(tensor._local_tensor), repr(tensor._spec)
        if isinstance(tensor, WrapperTensor):
            return ()  # it is an attribute
        if hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            return [(name, self.of(getattr(tensor, name))) for name in names]
        if tensor.is_meta:
            return (tensor.stride(), tensor.storage_offset()) if tensor.layout is torch.strided else ()
        plain = tensor.detach()
        if tensor.layout is torch.sparse_coo:
            return tensor.is_coalesced(), self._raw(plain._indices()), self._raw(plain._values())
        if tensor.layout is torch.sparse_csr:
            return [self._raw(each) for each in (plain.crow_indices(), plain.col_indices(), plain.values())]
        if tensor.is_nested:
            return repr(plain._nested_tensor_size().tolist()), self._raw(plain.values())
        if tensor.is_quantized:
            if tensor.qscheme() is torch.per_tensor_affine:
                return plain.q_scale(), plain.q_zero_point(), self._raw(plain.int_repr())
            return [
                self._raw(each)
                for each in (plain.q_per_channel_scales(), plain.q_per_channel_zero_points(), plain.int_repr())
            ]
        return (
            tensor.stride(),
            tensor.storage_offset(),
            tensor.is_conj(),
            tensor.is_neg(),
            self._storage(tensor.untyped_storage()),
        )

    def _raw(self, tensor: torch.Tensor) -> Any:
        return repr(tensor.dtype), tuple(tensor.shape), bytes_of(tensor.clone().untyped_storage())

    def _storage(self, storage: torch.UntypedStorage) -> Any:
        if storage.device.type == "meta":
            return "meta", storage.nbytes()
        if not storage.nbytes():
            return "empty"
        if storage._cdata in self._storages:
            return "shared", self._storages[storage._cdata]
        self._storages[storage._cdata] = len(self._storages)
        self._kept.append(storage)
        return storage.device.type, bytes_of(storage)


def bytes_of(storage: torch.UntypedStorage) -> bytes:
    """Return the bytes of a storage: ``bytes`` itself would go from one to the next."""
    if not storage.nbytes():
        return b""
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()  # type: ignore[call-overload,no-any-return]


def change(value: object, seen: set[int] | None = None) -> None:
    """Change all that can be changed of an object, in place: tensors, containers and attributes."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.UntypedStorage):
        if value.device.type == "cpu" and value.nbytes():
            torch.empty(0, dtype=torch.uint8).set_(value).fill_(255)  # type: ignore[call-overload]
        return
    for each in _parts(value):
        change(each, seen)
    if isinstance(value, dict):
        value["changed"] = "later"
    if isinstance(value, list):
        value.append("later")
    if hasattr(value, "__dict__") and not isinstance(value, type):
        with_attribute: Any = value
        try:
            with_attribute.changed = "later"
        except (AttributeError, RuntimeError, TypeError):
            pass


def _parts(value: object) -> list[Any]:
    if isinstance(value, DTensor):
        return [value._local_tensor]
    if isinstance(value, WrapperTensor):
        return [value.inner]
    if isinstance(value, torch.Tensor):
        if value.is_meta or type(value) is nn.UninitializedParameter:
            return list(vars(value).values())
        plain = value.detach()
        attributes = list(vars(value).values())
        if hasattr(value, "__tensor_flatten__"):
            return [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        if value.layout is torch.sparse_coo:
            return [*attributes, plain._values()]
        if value.layout is torch.sparse_csr:
            return [*attributes, plain.values()]
        return [*attributes, plain.untyped_storage()]
    if isinstance(value, dict):
        return [*value.values(), *list(getattr(value, "__dict__", {}).values())]
    if isinstance(value, (list, tuple)):
        return list(value)
    if hasattr(value, "__dict__") and not isinstance(value, type):
        if type(value).__module__.startswith("torch.distributed"):
            return []
        return list(vars(value).values())
    return []

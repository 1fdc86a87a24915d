"""Random states, and whether two of them are the same."""

from __future__ import annotations

import collections
import random

import torch

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def random_tensor(chance: random.Random) -> torch.Tensor:
    """Return a tensor of any type and shape: whole, transposed, sliced or expanded."""
    shape = [chance.choice([0, 1, 2, 3, 7, 40]) for _ in range(chance.randint(0, 3))]
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    whole = torch.randint(0, 2, shape, generator=generator).to(chance.choice(_DTYPES))
    kind = chance.randrange(4)
    if kind == 1:
        return whole.t() if whole.dim() == 2 else whole
    if kind == 2 and whole.dim() and whole.shape[0] > 1:
        return whole[1:]
    if kind == 3 and whole.dim() and whole.shape[-1]:
        return whole[..., :1].expand(*whole.shape[:-1], 3)
    return whole


def random_state(chance: random.Random, depth: int = 0) -> dict[str, object]:
    """Return items of a checkpoint, as nested as it may be."""
    state: dict[str, object] = {}
    for number in range(chance.randint(1, 5)):
        inner = chance.choice(["weight", "layer.0", "ä b", "a+b%20", "x"])
        name = f"{inner}{number}" if depth else f"item-{number}"  # the library names a file by each outermost one
        kind = chance.randrange(6 if depth < 2 else 4)
        if kind == 0:
            state[name] = chance.choice([1, 2.5, "text", None, True, b"bytes", (1, "two")])
        elif kind == 4:
            state[name] = random_state(chance, depth + 1)
        elif kind == 5:
            shared = random_tensor(chance)
            state[name] = collections.OrderedDict(first=shared, second=shared, list=[random_tensor(chance), 3])
        else:
            state[name] = random_tensor(chance)
    return state


def blank(value: object) -> object:
    """Return the same structure, with zeros in its tensors: what a state is loaded into."""
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return type(value)((key, blank(each)) for key, each in value.items())
    if isinstance(value, list):
        return [blank(each) for each in value]
    return value


def same(one: object, other: object) -> bool:
    """Whether two states are equal, bit for bit, types and strides of tensors included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.stride() == other.stride()
            and torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)

"""Proof of each byte that was read of an object, whatever ranges they are of, with ``checksums="strict"``.

What a server tells are checksums of units: of the parts of an upload, if it lists them, or else of the object. So
ranges that are units are proven by what is there. Of a unit that ranges have in part, the rest is read for its
checksum, into memory that is dropped then, as long as it is no more than the bytes that may be in flight
(``max_bytes_in_flight``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from s3torch._objects.spread import run

if TYPE_CHECKING:
    from s3torch._objects.remote import RemoteObject

__all__ = ["prove_each_byte"]


class _Piece(NamedTuple):
    """Bytes ``[start, stop)`` of the object, and their memory."""

    start: int
    stop: int
    view: memoryview


class _Unit(NamedTuple):
    """What one checksum proves: where it begins, what was read of it, and what was not."""

    start: int
    pieces: list[_Piece]
    gaps: list[tuple[int, int]]


def prove_each_byte(remote: RemoteObject, ranges: Sequence[tuple[int, int]], views: Sequence[memoryview]) -> None:
    """Verify what was read of ranges, all of it; what is damaged is fetched again, into the same memory.

    Args:
        remote: The object; an answer has told its size.
        ranges: Half-open, in any order. Those that overlap are verified each for itself.
        views: Memory of each range's size.

    Raises:
        IntegrityError: Bytes are damaged, however often they are fetched.
        UnverifiedError: Nothing proves some of them, or too much would have to be read for that.
    """
    for layer in _layers(ranges, views):
        try:
            if _is_all(layer, remote.size):
                remote.verifier.prove(0, [piece.view for piece in layer])
            else:
                _prove_units(remote, layer)
        finally:
            layer.clear()  # whoever keeps an error keeps this frame


def _layers(ranges: Sequence[tuple[int, int]], views: Sequence[memoryview]) -> list[list[_Piece]]:
    """Sort what was read, so that in each of the rows nothing overlaps."""
    pieces = [_Piece(*each, view) for each, view in zip(ranges, views, strict=True) if len(view)]
    layers: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece[:2]):
        layer = next((layer for layer in layers if layer[-1].stop <= piece.start), None)
        if layer is None:
            layers.append(layer := [])
        layer.append(piece)
    return layers


def _is_all(layer: Sequence[_Piece], size: int | None) -> bool:
    """Whether pieces are the whole object."""
    return (
        layer[0].start == 0
        and layer[-1].stop == size
        and all(left.stop == right.start for left, right in pairwise(layer))
    )


def _prove_units(remote: RemoteObject, layer: Sequence[_Piece]) -> None:
    room = remote.client_config.bytes_in_flight  # not a share: what is proven must not depend on it
    begun: list[_Unit] = []
    unit: _Unit | None = None
    lacking = 0
    try:
        for start, stop in remote.verifier.units():
            unit = _unit(layer, start, stop)
            if not unit.pieces:
                continue
            lacks = sum(right - left for left, right in unit.gaps)
            if lacks > room:
                raise remote.verifier.lacks_too_much(stop - start, lacks)
            if lacking + lacks > room:
                _conclude(remote, begun)
                lacking = 0
            begun.append(unit)
            lacking += lacks
        unit = None
        _conclude(remote, begun)
    finally:  # whoever keeps an error keeps this frame
        begun.clear()
        layer, unit = (), None


def _unit(layer: Sequence[_Piece], start: int, stop: int) -> _Unit:
    """Return what pieces have of ``[start, stop)``, and what they lack."""
    first = bisect_right(layer, start, key=lambda piece: piece.stop)
    last = bisect_left(layer, stop, key=lambda piece: piece.start)
    pieces, gaps, reached = [], [], start
    for piece in layer[first:last]:
        left, right = max(piece.start, start), min(piece.stop, stop)
        pieces.append(_Piece(left, right, piece.view[left - piece.start : right - piece.start]))
        if reached < left:
            gaps.append((reached, left))
        reached = right
    if pieces and reached < stop:
        gaps.append((reached, stop))
    return _Unit(start, pieces, gaps)


def _conclude(remote: RemoteObject, units: list[_Unit]) -> None:
    """Read what units lack, and compare each with its checksum; none of them is left then."""
    gaps = [gap for unit in units for gap in unit.gaps]
    views = [memoryview(bytearray(stop - start)) for start, stop in gaps]
    gets = remote.vector(gaps, views, 0)
    pieces: list[_Piece] = []
    try:
        run(remote.access, gets)
        remote.conclude_vector(gets, gaps)
        gets.clear()
        while True:
            if not units:
                break
            start, pieces, lacking = units.pop(0)
            pieces += [_Piece(*gap, views.pop(0)) for gap in lacking]
            pieces.sort(key=lambda piece: piece.start)
            remote.verifier.prove(start, [piece.view for piece in pieces])
    finally:  # whoever keeps an error keeps this frame
        gets.clear()
        views.clear()
        units.clear()
        pieces.clear()

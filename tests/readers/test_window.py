"""Tests of what the adaptive reader decides to fetch. Nothing is read here: the policy is asked as a reader asks it."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch.readers.window import BLOCK, SLACK, SMALL_OBJECT, TAIL, Kind, ReadAhead, Step

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class Model:
    """A reader that holds ranges instead of bytes, and counts."""

    def __init__(self, size: int, max_window: int = 64 * MiB, *, is_size_known: bool = True) -> None:
        self.size = size
        self.known = size if is_size_known else None
        self.pattern = ReadAhead(max_window)
        self.window = self.head = self.tail = (0, 0)
        self.steps: list[Step] = []
        self.fetched = 0
        self.read_bytes = 0

    def read(self, start: int, count: int) -> None:
        position, stop = start, min(start + count, self.size)
        while position < stop:
            end = self._held_until(position)
            if end == position:
                self._fetch(position, stop)
                end = self._held_until(position)
                assert end > position, "the step does not hold what is missing"
            end = min(end, stop)
            self.pattern.note_read(position, end)
            self.read_bytes += end - position
            position = end

    def _held_until(self, position: int) -> int:
        return max(
            [stop for start, stop in (self.window, self.head, self.tail) if start <= position < stop] + [position]
        )

    def _fetch(self, position: int, stop: int) -> None:
        step = self.pattern.plan(position, stop, self.known)
        assert 0 <= step.start <= position < step.stop
        end = min(step.stop, self.size)
        self.known = self.size
        self.pattern.note_fetched(step, end - step.start)
        self.steps.append(step)
        self.fetched += end - step.start
        if step.kind is Kind.HEAD:
            self.head = (step.start, end)
        elif step.kind is Kind.TAIL:
            self.tail = (step.start, end)
        else:
            self.window = (step.start, end)


@st.composite
def accesses(draw) -> tuple[int, list[tuple[int, int]]]:
    """An object's size, and reads of it: rows, small skips, and jumps of all sizes."""
    size = draw(st.one_of(st.integers(1, 2 * SMALL_OBJECT), st.integers(1, GiB)))
    counts = st.one_of(st.integers(1, 100), st.integers(1, 100 * KiB), st.integers(1, 4 * MiB))
    reads, position = [], 0
    for _ in range(draw(st.integers(1, 12))):
        position = draw(st.one_of(st.just(position), st.integers(0, size - 1), st.just(0), st.just(max(0, size - 50))))
        count, gap = draw(counts), draw(st.sampled_from([0, 0, 1, 100, 10_000]))
        for _ in range(draw(st.integers(1, 12))):
            if position < size:
                reads.append((position, count))
            position += count + gap
        position = min(position, size - 1)
    return size, reads


@given(accesses(), st.booleans(), st.sampled_from([BLOCK, MiB, 64 * MiB]))
@example((100 * MiB, [(0, 1), (100 * MiB - 30, 30), (1, 1), (5 * MiB, 1), (70 * MiB, 1)]), True, 64 * MiB)
def test_bytes_are_bounded(access: tuple[int, list[tuple[int, int]]], is_size_known: bool, max_window: int):
    """Whatever the pattern, at most 2 bytes are fetched for each that is read, and 64 KiB; or a small object, once."""
    size, reads = access
    model = Model(size, max_window, is_size_known=is_size_known)
    for start, count in reads:
        model.read(start, count)
        limit = 2 * model.read_bytes + SLACK
        assert model.fetched <= (limit if size > SMALL_OBJECT else max(limit, 2 * size))


@given(accesses(), st.booleans())
def test_requests_are_bounded(access: tuple[int, list[tuple[int, int]]], is_size_known: bool):
    """No read takes more than one fetch: as a range-based reader, or fewer."""
    size, reads = access
    model = Model(size, is_size_known=is_size_known)
    for start, count in reads:
        before = len(model.steps)
        model.read(start, count)
        assert len(model.steps) - before <= 1


@given(st.integers(1, 200 * KiB), st.integers(0, 5000), st.integers(1, 256 * MiB), st.booleans())
def test_small_reads_in_a_row(count: int, gap: int, size: int, is_size_known: bool):
    """Reading on, also with small gaps, takes fetches by the logarithm of the window and one for each window."""
    max_window = 8 * MiB
    count = max(count, size // 3000)  # keeps the test fast
    gap = min(gap, count // 4)
    model = Model(size, max_window, is_size_known=is_size_known)
    for position in range(0, size, count + gap):
        model.read(position, count)
    assert len(model.steps) <= 3 + 2 * math.log2(max_window / BLOCK) + 2 * size / max_window


@pytest.mark.parametrize("count", [4 * KiB, 64 * KiB, MiB])
def test_the_window_doubles(count: int):
    """Without gaps each window holds what was read before it, until the largest is reached."""
    model = Model(GiB, 64 * MiB)
    for position in range(0, GiB, count):
        model.read(position, count)
    assert len(model.steps) <= 1 + math.log2(64 * MiB / BLOCK) + GiB / (64 * MiB)
    assert {step.kind for step in model.steps[1:]} == {Kind.FORWARD}
    assert model.fetched == GiB


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(1, 300 * KiB)),
        min_size=1,
        max_size=60,
        unique_by=lambda read: read[0],
    )
)
def test_jumps_never_grow_the_window(reads: list[tuple[int, int]]):
    """Reads that are far from each other fetch what they ask for, or one block, however many there are."""
    model = Model(1001 * MiB + TAIL)
    for place, count in sorted(reads, key=lambda read: -read[0]):
        model.read(place * MiB + BLOCK, count)
        step = model.steps[-1]
        assert step.kind is Kind.JUMP
        assert step.stop - step.start <= max(count, BLOCK)


def test_a_jump_ends_a_row():
    """After a jump nothing of the row's window is left: it grows anew from one block."""
    model = Model(GiB)
    for position in range(0, 10 * MiB, 100 * KiB):
        model.read(position, 100 * KiB)
    assert model.pattern.window >= 10 * MiB
    model.read(500 * MiB, 100)
    assert model.steps[-1] == Step(500 * MiB, 500 * MiB + BLOCK, Kind.JUMP)
    assert model.pattern.window == BLOCK


def test_tiny_jumps_become_exact():
    """Once the slack is used up a tiny read far away fetches twice what it asks for at most."""
    model = Model(GiB)
    for place in range(2, 1000):
        model.read(1000 * MiB - place * MiB, 100)
    assert model.steps[0].stop - model.steps[0].start == BLOCK
    assert {step.stop - step.start for step in model.steps[10:]} == {200}


def test_head_and_tail_end_no_row():
    """A look at the head and the tail is served from what is kept of them, and reading on goes on as before."""
    model = Model(GiB)
    model.read(GiB - 22, 22)
    model.read(0, 100)
    for position in range(100 * MiB, 102 * MiB, 64 * KiB):
        model.read(position, 64 * KiB)
        before = len(model.steps)
        model.read(5000, 1000)
        model.read(GiB - TAIL, 1000)
        assert len(model.steps) == before
    kinds = [step.kind for step in model.steps]
    assert kinds == [Kind.TAIL, Kind.HEAD, Kind.JUMP] + [Kind.FORWARD] * (len(kinds) - 3)
    assert len(kinds) <= 9


def test_the_footer_of_a_table():
    """A read of the last 64 KiB is fetched as it is, and kept."""
    model = Model(GiB)
    model.read(GiB - 64 * KiB, 64 * KiB)
    assert model.steps == [Step(GiB - 64 * KiB, GiB, Kind.TAIL)]


def test_what_is_too_long_for_a_tail():
    """A longer read up to the end is fetched as it is, and not kept as the tail."""
    model = Model(GiB)
    model.read(GiB - 64 * KiB - 1, 64 * KiB + 1)
    assert model.steps == [Step(GiB - 64 * KiB - 1, GiB, Kind.JUMP)]


def test_a_directory_before_the_tail():
    """Of what reaches into the tail that is kept only the part before it is fetched."""
    model = Model(GiB)
    model.read(GiB - 22, 22)
    model.read(GiB - 100_000, 99_978)
    assert model.steps[1] == Step(GiB - 100_000, GiB - TAIL, Kind.JUMP)


@pytest.mark.parametrize("size", [BLOCK + 1, 100_000, SMALL_OBJECT])
def test_small_objects(size: int):
    """A small object is fetched by two requests, whichever bytes are read in whichever order."""
    for is_size_known in (True, False):
        model = Model(size, is_size_known=is_size_known)
        for position in (size // 2, 3, size - 1, 0, size // 3):
            model.read(position, 1)
        model.read(0, size)
        assert len(model.steps) <= 2 + (not is_size_known)


def test_large_reads_are_exact():
    """Reads as large as the window need no help: each fetches its bytes."""
    model = Model(10 * GiB, MiB)
    for position in range(MiB, 10 * MiB, 3 * MiB):
        model.read(position, 3 * MiB)
    assert [(step.start, step.stop) for step in model.steps] == [
        (position, position + 3 * MiB) for position in range(MiB, 10 * MiB, 3 * MiB)
    ]


def test_lines_ask_for_a_block():
    """Whoever asks for lines, whose length nobody knows, has asked for a block each time."""
    pattern = ReadAhead(MiB)
    for place in range(1, 100):
        pattern.note_asked(BLOCK)
        step = pattern.plan(place * MiB, place * MiB + BLOCK, GiB)
        assert step.stop - step.start >= BLOCK
        pattern.note_fetched(step, step.stop - step.start)
        pattern.note_read(place * MiB, place * MiB + 10)


def test_dropped_head_and_tail_are_fetched_again():
    """Head and tail that had to be dropped are fetched anew when they are wanted again."""
    model = Model(GiB)
    for _ in range(2):
        model.read(0, MiB)
        model.head = model.tail = model.window = (0, 0)
        model.pattern.note_dropped()
        model.read(0, 10)
        model.read(GiB - 1, 1)
    assert [step.kind for step in model.steps].count(Kind.TAIL) == 2
    assert [step.kind for step in model.steps].count(Kind.HEAD) == 2


@pytest.mark.parametrize(("position", "count"), [(MiB, 1), (MiB, BLOCK - 1), (MiB, BLOCK), (MiB, MiB)])
def test_a_jump_into_an_object_of_unknown_size(position: int, count: int):
    """Where the size is not known a block is fetched, or all that is asked for."""
    pattern = ReadAhead(MiB)
    pattern.note_fetched(Step(0, BLOCK, Kind.HEAD), BLOCK)
    assert pattern.plan(position, position + count, None) == Step(position, position + max(count, BLOCK), Kind.JUMP)


def test_the_first_look_at_a_small_object():
    """Of a small object a block is fetched first; only who wants more gets all of it."""
    pattern = ReadAhead(MiB)
    assert pattern.plan(0, 10, SMALL_OBJECT) == Step(0, BLOCK, Kind.HEAD)
    pattern.note_fetched(Step(0, BLOCK, Kind.HEAD), BLOCK)
    assert pattern.plan(BLOCK, BLOCK + 10, SMALL_OBJECT) == Step(BLOCK, SMALL_OBJECT, Kind.WHOLE)

"""Tests of a listing in ranges: each key comes once and in order, at a bounded cost, whatever the keys are."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch._aws.key_ranges import Alphabet, KeyRange, KeyRanges, UnorderedKeysError, split_points

Answer = tuple[list[bytes], bool]


class Bucket:
    """Sorted keys; answers pages as S3 does, and counts them."""

    def __init__(self, keys: Sequence[str], page_size: int) -> None:
        self.keys = sorted(key.encode() for key in keys)
        self.page_size = page_size
        self.requests = 0

    def page(self, after: str) -> Answer:
        """Return the keys behind another, and whether there are more."""
        self.requests += 1
        start = bisect_right(self.keys, after.encode()) if after else 0
        stop = start + self.page_size
        return self.keys[start:stop], stop < len(self.keys)


def _list(
    page: Callable[[str], Answer], prefix: str, max_requests: int, choice: random.Random
) -> tuple[list[bytes], int]:
    """List with answers that come in any order; returns the keys, and the requests that were at most under way."""
    ranges = KeyRanges(prefix, max_requests)
    found: dict[KeyRange, list[bytes]] = {}
    pending = ranges.due()
    most = 0
    while pending:
        most = max(most, len(pending))
        key_range = pending.pop(choice.randrange(len(pending)))
        keys, is_truncated = page(key_range.after)
        count = ranges.receive(key_range, keys, is_truncated=is_truncated)
        found.setdefault(key_range, []).extend(keys[:count])
        pending += ranges.due()
    return [key for key_range in ranges for key in found[key_range]], most


def _check(keys: Sequence[str], page_size: int, max_requests: int, seed: int, prefix: str = "") -> Bucket:
    bucket = Bucket(keys, page_size)
    listed, most = _list(bucket.page, prefix, max_requests, random.Random(seed))
    assert listed == bucket.keys
    assert most <= max_requests
    assert bucket.requests <= 3 * max(1, -(-len(keys) // page_size))
    return bucket


_CHARACTERS = st.characters(exclude_categories=["Cs"])
_ANY_KEYS = st.sets(st.text(_CHARACTERS, min_size=1, max_size=6), max_size=60)
_SIMILAR_KEYS = st.sets(st.text("ab01/é🦜\uffff\0", min_size=1, max_size=5), max_size=150)
_NUMBERED = st.builds(
    lambda names, count: {f"{name}{number:0{width}}" for name, width in names for number in range(count)},
    st.lists(st.tuples(st.sampled_from(["train/", "val/x_", "", "Z"]), st.integers(1, 5)), min_size=1, max_size=3),
    st.integers(1, 100),
)


@given(
    st.one_of(_ANY_KEYS, _SIMILAR_KEYS, _NUMBERED), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**32 - 1)
)
@example({"k"}, 1, 32, 0)
@example(set(), 1, 32, 0)
@example({"\0", "\0\0", "\U0010ffff", "\U0010ffff\U0010ffff"}, 1, 4, 0)
def test_every_key_once_and_in_order(keys: set[str], page_size: int, max_requests: int, seed: int):
    """Whatever the keys, the size of pages and the order of answers, all keys come once, sorted, at a bounded cost."""
    _check(sorted(keys), page_size, max_requests, seed)


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ([f"data/class_{number // 100:06}/{number:08}.jpg" for number in range(20_000)], 1.6),
        ([f"data/{number}.jpg" for number in range(20_000)], 2),
        ([f"data/{random.Random(number).getrandbits(64):016x}" for number in range(20_000)], 2.2),
        ([f"data/a/{number:06}" for number in range(19_990)] + [f"data/{letter}/x" for letter in "bcdefghijk"], 2),
    ],
    ids=["directories", "unpadded", "hexadecimal", "skewed"],
)
def test_usual_names(keys: list[str], most: float):
    """Usual names take at most about twice the requests of a listing in turn, and most of them at the same time."""
    bucket = Bucket(keys, 100)
    ranges = KeyRanges("data/", 32)
    rounds = 0
    while due := ranges.due():
        rounds += 1
        for key_range in due:
            page, is_truncated = bucket.page(key_range.after)
            ranges.receive(key_range, page, is_truncated=is_truncated)
    assert bucket.requests <= most * 200
    assert rounds <= 35


def test_a_single_page_is_a_single_request():
    """What fits into one page is listed by one request."""
    assert _check([f"k{number}" for number in range(1000)], 1000, 32, 0).requests == 1


def test_one_request_at_a_time():
    """Where only one request may be under way the listing is one page after the other."""
    assert _check([f"k{number}" for number in range(100)], 10, 1, 0).requests == 10


# --- Where to cut ----------------------------------------------------------------------------------------------------


def _alphabet(*keys: str) -> Alphabet:
    alphabet = Alphabet()
    for key in keys:
        alphabet.learn(key)
    return alphabet


def test_cuts_without_an_end():
    """Of what has no end each digit and each directory of the last key is tried, the farthest first."""
    points = split_points("train/0017/a.jpg", None, 0, _alphabet("train/0017/a.jpg"), 5)
    assert points == ["train/0018", "train/002", "train/01", "train/1", "train0"]
    assert split_points("train/0017/a.jpg", None, 0, _alphabet("train/0017/a.jpg"), 2) == ["train/1", "train0"]
    assert split_points("train/0017", None, 6, _alphabet("train/0017"), 9) == [
        "train/0018",
        "train/002",
        "train/01",
        "train/1",
    ]


def test_cuts_between_two_keys():
    """A range with an end is cut into equal parts at the first place where its keys can differ."""
    assert split_points("a1/x", "a9", 0, _alphabet("a1/x"), 1) == ["a5"]
    assert split_points("a1/x", "a9", 0, _alphabet("a1/x"), 100) == [f"a{digit}" for digit in range(2, 9)]
    assert split_points("a1/x", "a2", 0, _alphabet("a1/x"), 1) == ["a10"]


def test_no_place_to_cut():
    """Where nothing can be between, or no cut is wanted, nothing is cut."""
    assert split_points("9", None, 0, _alphabet("9"), 4) == []
    assert split_points("", None, 0, Alphabet(), 4) == []
    assert split_points("a1", "a9", 0, _alphabet("a1"), 0) == []


@given(_SIMILAR_KEYS, st.text(_CHARACTERS, max_size=6), st.none() | st.text(_CHARACTERS, max_size=6), st.integers(0, 9))
def test_cuts_lie_between(keys: set[str], after: str, until: str | None, count: int):
    """Cuts are sorted, strictly between the ends, not too many, and text that UTF-8 has bytes for."""
    alphabet = _alphabet(*keys, after)
    if until is None or after < until:
        points = split_points(after, until, 0, alphabet, count)
        assert points == sorted(set(points))
        assert len(points) <= count
        for point in points:
            assert after < point
            assert until is None or point < until
            point.encode()


# --- Servers that do not sort ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"], []])
def test_a_page_that_is_not_sorted(keys: list[bytes]):
    """A page that is not sorted, repeats a key, or is empty though there are more, is no base for ranges."""
    with pytest.raises(UnorderedKeysError):
        KeyRange("", None).receive(keys, is_truncated=True)


def test_a_page_from_before():
    """A page that does not lie behind where it was to begin is refused: the server ignores start-after."""
    with pytest.raises(UnorderedKeysError):
        KeyRange("b", None).receive([b"b", b"c"], is_truncated=False)


@given(
    st.sets(st.tuples(st.sampled_from(["a", "a-b", "a0", "b"]), st.integers(0, 99)), max_size=300),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_keys_in_the_order_of_directories(names: set[tuple[str, int]], page_size: int, seed: int):
    """Where a server sorts by directory no key is lost or doubled: all come, or the listing says that it can't."""
    by_directory = [f"{directory}/{number:02}".encode() for directory, number in sorted(names)]

    def order(key: bytes) -> list[bytes]:
        return key.split(b"/")

    def page(after: str) -> Answer:
        start = bisect_right(by_directory, order(after.encode()), key=order) if after else 0
        stop = start + page_size
        return by_directory[start:stop], stop < len(by_directory)

    try:
        listed, _ = _list(page, "", 8, random.Random(seed))
    except UnorderedKeysError:
        return
    assert listed == sorted(by_directory)

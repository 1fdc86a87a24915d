"""Tests of a listing in ranges: each key comes once and in order, at a bounded cost, whatever the keys are."""

from __future__ import annotations

import random
import sys
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s3torch._aws.key_ranges import Alphabet, KeyRange, KeyRanges, UnorderedKeysError, split_points

Answer = tuple[list[bytes], str | None]


class Bucket:
    """Keys in some order; answers pages as a server does, and counts them.

    Args:
        keys: All of them, in the order in which they are listed.
        page_size: Keys of a page.
        behind: Returns those that start-after leaves, in the order in which they are listed.
    """

    def __init__(
        self, keys: Sequence[str], page_size: int, behind: Callable[[list[bytes], bytes], list[bytes]] | None = None
    ) -> None:
        self.keys = [key.encode() for key in keys]
        self.page_size = page_size
        self.requests = 0
        self._behind = behind or _behind_by_bytes

    def page(self, key_range: KeyRange) -> Answer:
        """Return the keys that a range asks for, and the token of what follows."""
        self.requests += 1
        size = self.page_size
        if key_range.token is not None:
            keys = self.keys[self.keys.index(key_range.token.encode()) + 1 :]
        elif key_range.after:
            keys = self._behind(self.keys, key_range.after.encode())
            size = 1 if key_range.is_first_key else size
        else:
            keys = self.keys
        return keys[:size], keys[size - 1].decode() if len(keys) > size else None


def _behind_by_bytes(keys: list[bytes], after: bytes) -> list[bytes]:
    return keys[bisect_right(keys, after) :]


def _list(bucket: Bucket, ranges: KeyRanges, choice: random.Random) -> tuple[list[bytes], int]:
    """List with answers that come in any order; returns the keys, and the requests that were at most under way."""
    found: dict[KeyRange, list[bytes]] = {}
    pending = ranges.due()
    most = 0
    while pending:
        most = max(most, len(pending))
        key_range = pending.pop(choice.randrange(len(pending)))
        keys, token = bucket.page(key_range)
        count = ranges.receive(key_range, keys, token)
        found.setdefault(key_range, []).extend(keys[:count])
        pending += ranges.due()
    return [key for key_range in ranges for key in found[key_range]], most


def _check(keys: Sequence[str], page_size: int, max_requests: int, seed: int, prefix: str = "") -> Bucket:
    for is_sorted in (False, True):
        bucket = Bucket(sorted(keys), page_size)
        ranges = KeyRanges(prefix, max_requests, is_sorted=is_sorted)
        listed, most = _list(bucket, ranges, random.Random(seed))
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
    ("keys", "most", "elsewhere"),
    [
        ([f"data/class_{number // 100:06}/{number:08}.jpg" for number in range(20_000)], 1.6, 1.6),
        ([f"data/{number}.jpg" for number in range(20_000)], 2, 2.4),
        ([f"data/{random.Random(number).getrandbits(64):016x}" for number in range(20_000)], 2.2, 2.2),
        ([f"data/a/{number:06}" for number in range(19_990)] + [f"data/{letter}/x" for letter in "bcdefghijk"], 2, 2),
    ],
    ids=["directories", "unpadded", "hexadecimal", "skewed"],
)
@pytest.mark.parametrize("is_sorted", [True, False])
def test_usual_names(keys: list[str], most: float, elsewhere: float, is_sorted: bool):
    """Usual names take at most about twice the requests of a listing in turn, and most of them at the same time."""
    bucket = Bucket(sorted(keys), 100)
    ranges = KeyRanges("data/", 32, is_sorted=is_sorted)
    rounds = 0
    while due := ranges.due():
        rounds += 1
        for key_range in due:
            ranges.receive(key_range, *bucket.page(key_range))
    assert bucket.requests <= (most if is_sorted else elsewhere) * 200
    assert rounds <= (35 if is_sorted else 70)


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


def test_a_guess_is_cheap():
    """To guess where to cut takes steps for the characters of a key, not for each of those that were seen anywhere."""
    choice = random.Random(1)
    letters = [chr(0x4E00 + number) for number in range(5000)]
    keys = sorted("".join(choice.choices(letters, k=340)) for _ in range(3000))
    ranges = KeyRanges("", 32)
    bucket = Bucket(keys, 1000)
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    for _ in range(2):
        (key_range,) = ranges.due()[:1]
        page = bucket.page(key_range)
        sys.setprofile(count)
        try:
            ranges.receive(key_range, *page)
        finally:
            sys.setprofile(None)
    assert steps < 2 * 340 * 100


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
        KeyRange("", None).receive(keys, "token")


def test_a_page_from_before():
    """A page that does not lie behind where it was to begin is refused: the server ignores start-after."""
    with pytest.raises(UnorderedKeysError):
        KeyRange("b", None).receive([b"b", b"c"], None)


def _directories(key: str) -> list[str]:
    return key.split("/")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


# How a server may sort its keys; the last one is no order at all, which is the same for each request.
ORDERS: dict[str, Callable[[str], Any]] = {
    "bytes": str.encode,
    "case-insensitive": lambda key: (key.lower(), key),
    "UTF-16": _utf16,
    "directories": _directories,
    "random": lambda key: zlib.crc32(key.encode()),
}


def _positional(order: Callable[[str], Any]) -> Callable[[list[bytes], bytes], list[bytes]]:
    """Start-after is a place in the listing: all from the first key that sorts behind it."""

    def behind(keys: list[bytes], after: bytes) -> list[bytes]:
        place = next((n for n, key in enumerate(keys) if order(key.decode()) > order(after.decode())), len(keys))
        return keys[place:]

    return behind


def _filtering(order: Callable[[str], Any]) -> Callable[[list[bytes], bytes], list[bytes]]:
    """Start-after leaves every key out that does not sort behind it, wherever it stands in the listing."""

    def behind(keys: list[bytes], after: bytes) -> list[bytes]:
        return [key for key in keys if order(key.decode()) > order(after.decode())]

    return behind


def _behind_that_key(keys: list[bytes], after: bytes) -> list[bytes]:
    """Start-after names a key: without it nothing is left."""
    return keys[keys.index(after) + 1 :] if after in keys else []


BEHIND = {
    **{f"place by {name}": _positional(order) for name, order in ORDERS.items()},
    **{f"filter by {name}": _filtering(order) for name, order in ORDERS.items()},
    "that key": _behind_that_key,
    "ignored": lambda keys, _after: keys,
}


@settings(max_examples=400)
@given(
    st.one_of(
        st.sets(st.text("aAbB", min_size=1, max_size=4), max_size=40),
        st.sets(st.text("a/-1", min_size=1, max_size=5), max_size=40),
        st.sets(st.text("ab\uffff🦜", min_size=1, max_size=4), max_size=40),
        st.sets(st.text("aB_0/é🦜\uffff", min_size=1, max_size=4), max_size=40),
    ),
    st.sampled_from(list(ORDERS)),
    st.sampled_from(list(BEHIND)),
    st.integers(1, 5),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)
@example({"a", "B"}, "case-insensitive", "filter by bytes", 1, 8, 0)
@example({"a/1", "a/5", "a-b/y", "b"}, "directories", "filter by bytes", 2, 8, 0)
def test_no_key_is_lost_in_any_order(
    keys: set[str], order: str, behind: str, page_size: int, max_requests: int, seed: int
):
    """However a server sorts and whatever start-after means to it: all keys come, or the listing says that it can't."""
    bucket = Bucket(sorted(keys, key=ORDERS[order]), page_size, BEHIND[behind])
    try:
        listed, _ = _list(bucket, KeyRanges("", max_requests), random.Random(seed))
    except UnorderedKeysError:
        assert "bytes" not in order or "bytes" not in behind
        return
    assert listed == sorted(bucket.keys)

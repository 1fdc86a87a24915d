"""Which parts of a listing are asked for at the same time. Pure: the caller sends the requests.

Theory of operation. Only a page of ListObjectsV2 tells where the next one begins, so that page follows page by a round
trip each. ``start-after`` begins a listing anywhere, though, and keys come in the order of their UTF-8 bytes, which is
that of Python's strings. So the keys are cut into ranges ``(after, until]`` that are listed side by side. Where to cut
is a guess, since nobody knows the keys beforehand: a range is cut when a page of it has come, there is more, and fewer
requests are under way than may be.

A range with an end is cut at the first character where its keys can differ, into equal parts of the characters that are
likely there. Of the last range nobody knows how far it reaches: it is cut after each digit and each directory of the
key that was reached (``train/0017`` gives ``train/0018``, ``train/002``, ``train/01``, ``train/1``, ``train0``), which
finds the extent of numbered names in one step. A cut is made of characters that were seen, or of digits, so it is
always text that can be sent; and it need not be a key.

A guess can be wrong: a range may be empty, and costs one request then. There are at most two cuts for each page that
had a successor, so a listing takes at most three times the requests of one page after the other, and mostly about as
many. A small bucket is listed as ever.

What this rests on is that the server sorts keys as Amazon S3 does (its directory buckets don't, nor do file systems
behind a gateway, for whom a directory is one name). Therefore every page must be sorted and lie behind its
``start-after``, and where two ranges meet, the first key that the left one saw beyond its end must be the first one of
the right. Else ``UnorderedKeysError`` tells to list one page after the other. That happens too if just there a key was
written in between, which costs time only.
"""

from __future__ import annotations

import operator
import string
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

__all__ = ["Alphabet", "KeyRange", "KeyRanges", "UnorderedKeysError", "split_points"]

_DIGITS = frozenset(string.digits)
# The character after "/": all keys of a directory come before it.
_AFTER_SLASH = "0"
# Keys of a page whose characters are learned from. Not tuned.
_SAMPLES = 4
# Cuts that each page with a successor pays for, and requests that may be under way for each of them.
_CUTS_PER_PAGE = 2


class UnorderedKeysError(Exception):
    """The keys are not in the order that ranges need, or were changed while they were listed."""


class Alphabet:
    """The characters that keys were seen to have, by their place."""

    def __init__(self) -> None:
        self._at: list[set[str]] = []
        self._seen: set[str] = set()

    def learn(self, key: str) -> None:
        """Add a key's characters."""
        while len(self._at) < len(key):
            self._at.append(set())
        for place, character in zip(self._at, key, strict=False):
            place.add(character)
        self._seen.update(key)

    def likely(self, place: int, character: str) -> list[str]:
        """Return what may stand where ``character`` was found, and sorts behind it."""
        seen = self._at[place] if place < len(self._at) else set()
        others = seen | _DIGITS if character in _DIGITS else set(seen)
        if any(other not in _DIGITS for other in seen - {character, "/"}):  # letters differ here: so may all of them
            others |= {other for other in self._seen if other.isalpha()}
        if character == "/":
            others.add(_AFTER_SLASH)
        return sorted(other for other in others if other > character)

    def next_seen(self, character: str) -> str | None:
        """Return the character that follows among those seen anywhere."""
        return min((other for other in self._seen if other > character), default=None)


def split_points(after: str, until: str | None, start: int, alphabet: Alphabet, count: int) -> list[str]:
    """Return where to cut the keys behind ``after``, up to and with ``until``.

    Args:
        after: The last key that was listed.
        until: The end; None if there is none.
        start: Characters that all keys have in common.
        alphabet: What was seen so far.
        count: Cuts at most.

    Returns:
        Texts strictly between the two, sorted; none if there is no good place.
    """
    if until is None:
        return _points_without_end(after, start, alphabet, count)
    start = _common(after, until)
    for place in range(start, len(after)):
        characters = alphabet.likely(place, after[place])
        if place == start and place < len(until):
            characters = [each for each in characters if after[:place] + each < until]
        if characters:
            return [after[:place] + character for character in _spread(characters, count)]
    return []


def _points_without_end(after: str, start: int, alphabet: Alphabet, count: int) -> list[str]:
    """Return cuts behind each digit and directory of a key; if there are too few, behind other characters as well."""
    likely: list[str] = []
    possible: list[str] = []
    for place in range(start, len(after)):
        head, character = after[:place], after[place]
        following = alphabet.likely(place, character)
        if following:
            likely.append(head + following[0])
        else:
            further = alphabet.next_seen(character)
            if further is not None:
                possible.append(head + further)
    return sorted(set((likely + possible)[:count]))


def _common(left: str, right: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _spread(characters: Sequence[str], count: int) -> list[str]:
    """Return up to ``count`` of the characters, evenly spread."""
    count = min(count, len(characters))
    return [characters[(number + 1) * len(characters) // (count + 1)] for number in range(count)]


class KeyRange:
    """The keys behind ``after``, up to and with ``until``.

    Attributes:
        after: Where the next page begins; "" is the beginning of the listing.
        until: None is the end of the listing.
        is_done: Whether all of its keys were received.
    """

    __slots__ = ("_beyond", "_first", "_left", "_right", "after", "is_done", "until")

    def __init__(self, after: str, until: str | None) -> None:
        self.after = after
        self.until = until
        self.is_done = False
        # The first key behind the beginning, and behind the end: "" where that is not known, None where there is none.
        self._first: str | None = ""
        self._beyond: str | None = ""
        self._left: KeyRange | None = None
        self._right: KeyRange | None = None

    def __repr__(self) -> str:
        return f"<KeyRange {self.after!r}..{self.until!r}{' done' if self.is_done else ''}>"

    def receive(self, keys: Sequence[bytes], *, is_truncated: bool) -> int:
        """Take a page; returns how many of its keys, from the first, belong here.

        Raises:
            UnorderedKeysError: See the module's theory of operation.
        """
        if (is_truncated and not keys) or not all(map(operator.lt, keys, islice(keys, 1, None))):
            raise UnorderedKeysError
        first = keys[0].decode() if keys else None
        if first is not None and first <= self.after:
            raise UnorderedKeysError
        if self._first == "":
            self._first = first
        count = len(keys) if self.until is None else bisect_right(keys, self.until.encode())
        if count < len(keys):
            self._beyond = keys[count].decode()
        elif not is_truncated:
            self._beyond = None
        if count:
            self.after = keys[count - 1].decode()
        self.is_done = count < len(keys) or not is_truncated or self.after == self.until
        for left, right in ((self._left, self), (self, self._right)):
            if left is not None and right is not None and not left._meets(right):
                raise UnorderedKeysError
        return count

    def _meets(self, right: KeyRange) -> bool:
        """Whether what is known of the keys at the border to the next range agrees."""
        return self._beyond == right._first or "" in (self._beyond, right._first)

    def cut(self, point: str) -> KeyRange:
        """Give the keys behind ``point`` to a new range, which is returned."""
        other = KeyRange(point, self.until)
        self.until = point
        other._left, other._right = self, self._right
        if self._right is not None:
            self._right._left = other
        self._right = other
        return other

    def following(self) -> Iterator[KeyRange]:
        """Yield this range and all behind it."""
        each: KeyRange | None = self
        while each is not None:
            yield each
            each = each._right


class KeyRanges:
    """A listing in ranges: tells what to ask for next.

    Args:
        prefix: Of all keys.
        max_requests: At the same time.
    """

    def __init__(self, prefix: str, max_requests: int) -> None:
        self._start = len(prefix)
        self._max_requests = max_requests
        self._alphabet = Alphabet()
        self._first = KeyRange("", None)
        self._due = deque([self._first])
        self._active = 1
        self._pages = 0
        self._cuts = 0

    def __repr__(self) -> str:
        return f"<KeyRanges {self._active} active, {self._cuts} cuts, {self._pages} pages with a successor>"

    def __iter__(self) -> Iterator[KeyRange]:
        """Yield the ranges in the order of their keys."""
        return self._first.following()

    def due(self) -> list[KeyRange]:
        """Return the ranges whose next page is to be asked for now; each is returned once for each page."""
        due = list(self._due)
        self._due.clear()
        return due

    def receive(self, key_range: KeyRange, keys: Sequence[bytes], *, is_truncated: bool) -> int:
        """Take a page of a range; returns how many of its keys, from the first, belong to the range.

        Args:
            key_range: As ``due`` returned it; the page began behind its ``after``.
            keys: Of the page, in UTF-8.
            is_truncated: Whether the page says that there are more.

        Raises:
            UnorderedKeysError: See the module's theory of operation.
        """
        count = key_range.receive(keys, is_truncated=is_truncated)
        for key in (*keys[:: max(1, len(keys) // _SAMPLES)], *keys[-1:]):
            self._alphabet.learn(key.decode())
        if key_range.is_done:
            self._active -= 1
            return count
        self._pages += 1
        self._due.append(key_range)
        for point in reversed(
            split_points(key_range.after, key_range.until, self._start, self._alphabet, self._room())
        ):
            self._due.append(key_range.cut(point))
            self._active += 1
            self._cuts += 1
        return count

    def _room(self) -> int:
        """Return how many cuts may be made now: what is free is shared among the ranges."""
        free = min(self._max_requests, 1 + _CUTS_PER_PAGE * self._pages) - self._active
        allowed = _CUTS_PER_PAGE * self._pages - self._cuts
        return max(0, min(-(-free // self._active), allowed))

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
behind a gateway, for whom a directory is one name). So every page must be sorted, and where two ranges meet, the first
key that the left one saw beyond its end must be the first one of the right, and both must agree on whether it is the
last of all. Else ``UnorderedKeysError`` tells to list
one page after the other. That happens too if just there a key was written in between, which costs time only.

Of other servers than Amazon's nobody knows by which order they compare ``start-after``. If that is not the one in which
pages come, a page may leave keys out that lie between two others. So there a range begins with a page of one key, which
cannot, and goes on by continuation tokens, which a listing in turn rests on, too: they continue in the server's order,
whatever that is. Each range is then a run of that order without a gap, and all of them together are one run, since they
meet. That costs a small request for each range that is not empty; so that it is not more than three times the requests
either, each page pays for one cut there.
"""

from __future__ import annotations

import operator
import string
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

__all__ = ["Alphabet", "KeyRange", "KeyRanges", "UnorderedKeysError", "split_points"]

_DIGITS = frozenset(string.digits)
# The character after "/": all keys of a directory come before it.
_AFTER_SLASH = "0"
# Keys of a page whose characters are learned from. Not tuned.
_SAMPLES = 4
# Cuts that each page with a successor pays for, and requests that may be under way for each of them: where the server
# is known to sort as Amazon S3 does, and elsewhere.
_CUTS_PER_PAGE = 2
_CUTS_PER_PAGE_ELSEWHERE = 1


class UnorderedKeysError(Exception):
    """The keys are not in the order that ranges need, or were changed while they were listed."""


class _Characters:
    """Characters in order: what follows one of them is found without looking at all."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._sorted: list[str] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, character: str) -> bool:
        return character in self._known

    def add(self, characters: Iterable[str]) -> None:
        """Add characters that may be known."""
        for new in set(characters) - self._known:
            self._known.add(new)
            insort(self._sorted, new)

    def behind(self, character: str) -> list[str]:
        """Return all that sort behind one."""
        return self._sorted[bisect_right(self._sorted, character) :]

    def next(self, character: str) -> str | None:
        """Return the first that sorts behind one."""
        place = bisect_right(self._sorted, character)
        return self._sorted[place] if place < len(self._sorted) else None


class Alphabet:
    """The characters that keys were seen to have, by their place.

    A key has up to 1,024 characters, and each place of it is asked about after each page: so a question must not take
    time for each character that was seen.
    """

    def __init__(self) -> None:
        self._at: list[_Characters] = []
        self._seen = _Characters()
        self._letters = _Characters()
        self._digits = _Characters()
        self._digits.add(_DIGITS)
        self._slashes = _Characters()
        self._slashes.add(_AFTER_SLASH)

    def learn(self, key: str) -> None:
        """Add a key's characters."""
        while len(self._at) < len(key):
            self._at.append(_Characters())
        for place, character in zip(self._at, key, strict=False):
            if character not in place:
                place.add(character)
        self._seen.add(key)
        self._letters.add(filter(str.isalpha, key))

    def likely(self, place: int, character: str) -> list[str]:
        """Return what may stand where ``character`` was found, and sorts behind it."""
        return sorted({other for source in self._sources(place, character) for other in source.behind(character)})

    def next_likely(self, place: int, character: str) -> str | None:
        """Return the first of what may stand where ``character`` was found, and sorts behind it."""
        return min(filter(None, [source.next(character) for source in self._sources(place, character)]), default=None)

    def next_seen(self, character: str) -> str | None:
        """Return the character that follows among those seen anywhere."""
        return self._seen.next(character)

    def _sources(self, place: int, character: str) -> Iterator[_Characters]:
        """Yield the characters of which any may stand where one was found."""
        if character in _DIGITS:
            yield self._digits
        if character == "/":
            yield self._slashes
        if place < len(self._at):
            seen = self._at[place]
            yield seen
            if self._has_letters(seen, character):  # letters differ here: so may all of them
                yield self._letters

    @staticmethod
    def _has_letters(seen: _Characters, character: str) -> bool:
        """Whether a character was seen that is neither a digit, nor a slash, nor the one that was found."""
        usual = {character, "/", *_DIGITS}
        return len(seen) > len(usual) or any(other not in usual for other in seen.behind(""))


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
        if len(likely) == count:
            break
        head, character = after[:place], after[place]
        following = alphabet.next_likely(place, character)
        if following is not None:
            likely.append(head + following)
        elif len(possible) < count:
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


class _Key(NamedTuple):
    """What is known of a key where two ranges meet.

    Attributes:
        key: In UTF-8.
        is_last: Whether the page that it came in says that no other follows it.
    """

    key: bytes
    is_last: bool


_UNKNOWN = _Key(b"", is_last=False)


def _key_at(place: int, keys: Sequence[bytes], token: str | None) -> _Key | None:
    if place == len(keys):
        return None
    return _Key(keys[place], is_last=token is None and place == len(keys) - 1)


class KeyRange:
    """The keys behind ``after``, up to and with ``until``.

    Attributes:
        after: The last key that was received, or where the range begins; "" is the beginning of the listing.
        until: None is the end of the listing.
        token: Names the next page; None before the first page.
        is_done: Whether all of its keys were received.

    Args:
        is_sorted: As for KeyRanges.
    """

    __slots__ = ("_beyond", "_first", "_is_sorted", "_left", "_right", "after", "is_done", "token", "until")

    def __init__(self, after: str, until: str | None, *, is_sorted: bool = False) -> None:
        self._is_sorted = is_sorted
        self.after = after
        self.until = until
        self.token: str | None = None
        self.is_done = False
        # The first key behind the beginning, and behind the end; None where there is none.
        self._first: _Key | None = _UNKNOWN
        self._beyond: _Key | None = _UNKNOWN
        self._left: KeyRange | None = None
        self._right: KeyRange | None = None

    def __repr__(self) -> str:
        return f"<KeyRange {self.after!r}..{self.until!r}{' done' if self.is_done else ''}>"

    @property
    def is_first_key(self) -> bool:
        """Whether only its first key is asked for; see the module's theory of operation."""
        return self.token is None and self.after != "" and not self._is_sorted

    def receive(self, keys: Sequence[bytes], token: str | None) -> int:
        """Take a page, with the token of the next; returns how many of its keys, from the first, belong here.

        Raises:
            UnorderedKeysError: See the module's theory of operation.
        """
        if (token is not None and not keys) or not all(map(operator.lt, keys, islice(keys, 1, None))):
            raise UnorderedKeysError
        if self.is_first_key and len(keys) > 1:  # keys may be missing between them
            raise UnorderedKeysError
        if keys and keys[0].decode() <= self.after:
            raise UnorderedKeysError
        if self._first == _UNKNOWN:
            self._first = _key_at(0, keys, token)
        count = len(keys) if self.until is None else bisect_right(keys, self.until.encode())
        if count < len(keys) or token is None:
            self._beyond = _key_at(count, keys, token)
        if count:
            self.after = keys[count - 1].decode()
        self.token = token
        # Where the end itself was received, what comes next is still to be seen, unless it is known to lie beyond.
        self.is_done = count < len(keys) or token is None or (self._is_sorted and self.after == self.until)
        for left, right in ((self._left, self), (self, self._right)):
            if left is not None and right is not None and not left._meets(right):
                raise UnorderedKeysError
        return count

    def _meets(self, right: KeyRange) -> bool:
        """Whether what is known of the keys at the border to the next range agrees."""
        return self._beyond == right._first or _UNKNOWN in (self._beyond, right._first)

    def cut(self, point: str) -> KeyRange:
        """Give the keys behind ``point`` to a new range, which is returned."""
        other = KeyRange(point, self.until, is_sorted=self._is_sorted)
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
        is_sorted: Whether the server is known to list by the bytes of keys, and to compare ``start-after`` by them.
    """

    def __init__(self, prefix: str, max_requests: int, *, is_sorted: bool = False) -> None:
        self._start = len(prefix)
        self._max_requests = max_requests
        self._alphabet = Alphabet()
        self._cuts_per_page = _CUTS_PER_PAGE if is_sorted else _CUTS_PER_PAGE_ELSEWHERE
        self._first = KeyRange("", None, is_sorted=is_sorted)
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

    def receive(self, key_range: KeyRange, keys: Sequence[bytes], token: str | None) -> int:
        """Take a page of a range; returns how many of its keys, from the first, belong to the range.

        Args:
            key_range: As ``due`` returned it.
            keys: Of the page, in UTF-8.
            token: Of the next page; None if there are no more keys.

        Raises:
            UnorderedKeysError: See the module's theory of operation.
        """
        is_first_key = key_range.is_first_key
        count = key_range.receive(keys, token)
        for key in (*keys[:: max(1, len(keys) // _SAMPLES)], *keys[-1:]):
            self._alphabet.learn(key.decode())
        if key_range.is_done:
            self._active -= 1
            return count
        self._due.append(key_range)
        if is_first_key:
            return count  # nothing shows yet that the range is worth another cut
        self._pages += 1
        for point in reversed(
            split_points(key_range.after, key_range.until, self._start, self._alphabet, self._room())
        ):
            self._due.append(key_range.cut(point))
            self._active += 1
            self._cuts += 1
        return count

    def _room(self) -> int:
        """Return how many cuts may be made now: what is free is shared among the ranges."""
        free = min(self._max_requests, 1 + self._cuts_per_page * self._pages) - self._active
        allowed = self._cuts_per_page * self._pages - self._cuts
        return max(0, min(-(-free // self._active), allowed))

"""Checks of keys with odd characters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from s3torch.errors import S3Error
from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import UnfulfilledError, equal, same_bytes, that

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS", "ODD_NAMES"]

CHECKS = Checks()

# Names that S3 keeps as they are: any UTF-8, up to 1,024 bytes with the prefix
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html). By kind, as servers differ by kind.
ODD_NAMES: Mapping[str, tuple[str, ...]] = {
    "characters": (
        "a b",
        "plus+plus",
        "percent%25",
        "percent%",
        "quote'\"",
        "less<more>&amp;",
        "question?x=1&y",
        "hash#1",
        "equal=,;:@!$()*",
        "tilde~^`|{}[]",
        "ümlaut",
        "u\u0308mlaut",
        "日本語",
        "emoji😀",
        " leading and trailing ",
    ),
    "backslash": ("back\\slash",),
    "slashes": ("double//slash", "/leading", "trailing/", "end/of//"),
    "dots": ("dot/./dot", "dot/../dot", "..", "a/."),
    "control": ("tab\there", "line\nfeed", "carriage\rreturn", "bell\x07", "delete\x7f"),
}
_LONGEST_KEY = 1024


def _check_names(site: Site, names: tuple[str, ...]) -> None:
    """Put, read and list each name; all that go wrong are told at once."""
    folder = site.folder()
    found = [_what_becomes_of(site, f"{folder}{number}/", name) for number, name in enumerate(names)]
    wrong = [f"{name!r} {seen}" for name, seen in zip(names, found, strict=True) if seen]
    that(not wrong, f"{len(wrong)} of {len(names)} keys: {'; '.join(wrong)}")


def _what_becomes_of(site: Site, folder: str, name: str) -> str:
    """Return what is wrong with a key of this name, the only one in its folder; empty if nothing is."""
    content = name.encode() + b" content"
    try:
        key = site.put(content, folder + name)
        if site.get(key) != content:
            return "is read with other bytes"
        listed = [info.key[len(folder) :] for info in site.listed(folder)]
    except UnfulfilledError:
        return "is not found under its name"
    except S3Error as error:
        return _refused(error)
    return "" if listed == [name] else f"is listed as {', '.join(map(repr, listed)) or 'nothing'}"


_LISTED = ["list.prefix"]


def _refused(error: S3Error) -> str:
    return f"is refused: {type(error).__name__} {error.status or ''} {error.code or ''}".rstrip()


@CHECKS.add(
    "keys.characters",
    "Keys with spaces, quotes, percent signs and letters of any script are kept as they are.",
    "Objects with such keys cannot be stored or found under their names; rename them.",
    needs=_LISTED,
)
def _characters(site: Site) -> None:
    _check_names(site, ODD_NAMES["characters"])


@CHECKS.add(
    "keys.backslash",
    "A backslash is a character like any other.",
    "The server takes it for a slash: two keys may become one object.",
    needs=_LISTED,
)
def _backslash(site: Site) -> None:
    _check_names(site, ODD_NAMES["backslash"])


@CHECKS.add(
    "keys.slashes",
    "Keys with empty segments (`a//b`) or a slash at the end are kept as they are.",
    "The server treats keys as paths: two keys may become one object.",
    needs=_LISTED,
)
def _slashes(site: Site) -> None:
    _check_names(site, ODD_NAMES["slashes"])


@CHECKS.add(
    "keys.dots",
    "Keys with the segments `.` and `..` are kept as they are.",
    "The server treats keys as paths: do not use such segments.",
    needs=_LISTED,
)
def _dots(site: Site) -> None:
    _check_names(site, ODD_NAMES["dots"])


@CHECKS.add(
    "keys.control",
    "Keys with control characters are kept, and listed so that they can be parsed.",
    "Do not use control characters in keys.",
    needs=_LISTED,
)
def _control(site: Site) -> None:
    _check_names(site, ODD_NAMES["control"])


@CHECKS.add(
    "keys.long",
    "A key of 1,024 bytes is kept, in one segment or in many.",
    "Long keys are refused.",
    needs=_LISTED,
)
def _long(site: Site) -> None:
    for what, segment in (("one segment", "k" * _LONGEST_KEY), ("many segments", "segment/" * (_LONGEST_KEY // 8))):
        folder = site.folder()
        name = segment[: _LONGEST_KEY - len(folder) - 1] + "k"  # no slash at the end
        seen = _what_becomes_of(site, folder, name)
        that(
            not seen or not seen.startswith("is listed"), f"a key of {_LONGEST_KEY} bytes in {what} is listed otherwise"
        )
        that(not seen, f"a key of {_LONGEST_KEY} bytes in {what} {seen}")


@CHECKS.add(
    "keys.prefix-of-another",
    "A key may be the beginning of another: `p` and `p/q` are two objects.",
    "The server treats keys as paths: a key cannot be a folder as well.",
    needs=_LISTED,
)
def _prefix_of_another(site: Site) -> None:
    folder = site.folder()
    for name in ("p", "p/q"):
        try:
            site.put(name.encode(), folder + name)
        except S3Error as error:
            raise UnfulfilledError(f"the key {name!r} {_refused(error)}") from None
    for name in ("p", "p/q"):
        same_bytes(site.get(folder + name), name.encode(), f"the object {name!r}")
    equal(sorted(info.key[len(folder) :] for info in site.listed(folder)), ["p", "p/q"], "the listing")


@CHECKS.add(
    "copy.odd-keys",
    "A copy is made of and under keys with spaces, plus and percent signs.",
    "copy_object cannot be used with such keys: read and write instead.",
    needs=["copy.object", "keys.characters"],
)
def _copy(site: Site) -> None:
    folder = site.folder()
    content = os.urandom(1000)
    source, target = site.put(content, folder + "so urce+ü%20"), site.own(folder + "co py+ü%20")
    site.client.copy_object(site.bucket, source, site.bucket, target)
    same_bytes(site.get(target), content, "the copy")

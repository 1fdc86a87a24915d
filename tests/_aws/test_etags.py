"""ETags as servers write them."""

from __future__ import annotations

import pytest

from s3torch._aws.etags import are_same, for_if_match, lacks_proof, opaque, other_version, preferred

MONDAY, TUESDAY = "Mon, 05 Jan 2026 00:00:00 GMT", "Tue, 06 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize("etag", ["e1", '"e1"', 'W/"e1"', ' "e1" ', "W/e1"])
def test_one_version(etag: str):
    """Quotes and weakness say nothing of the version."""
    assert opaque(etag) == "e1"
    assert are_same(etag, '"e1"')
    assert not are_same(etag, '"e2"')


@pytest.mark.parametrize("etag", [None, "", '""', 'W/""'])
def test_no_version(etag: str | None):
    """An ETag that says nothing is none."""
    assert opaque(etag) == ""
    assert for_if_match(etag) is None
    assert preferred('"e"', etag) == '"e"'


@pytest.mark.parametrize(("etag", "sent"), [('"e1"', '"e1"'), ("e1", None), ('W/"e1"', None)])
def test_if_match(etag: str, sent: str | None):
    """Only a strong ETag with its quotes is asked for: a weak one would match nothing (RFC 9110 13.1.1)."""
    assert for_if_match(etag) == sent


@pytest.mark.parametrize(
    ("known", "found", "kept"),
    [
        (None, "e", "e"),
        ("e", '"e"', '"e"'),
        ('"e"', "e", '"e"'),
        ('"e"', 'W/"e"', '"e"'),
        ('W/"e"', '"e"', '"e"'),
        ("e", 'W/"e"', 'W/"e"'),
    ],
)
def test_which_is_kept(known: str | None, found: str, kept: str):
    """Of two ETags of a version the one is kept that can be asked for."""
    assert preferred(known, found) == kept


@pytest.mark.parametrize(
    ("etag", "found_etag", "modified", "found_modified", "other"),
    [
        ('"e"', '"e"', MONDAY, TUESDAY, None),
        ('"e"', '"f"', MONDAY, MONDAY, ("ETag", '"e"', '"f"')),
        (None, None, MONDAY, TUESDAY, ("Last-Modified", MONDAY, TUESDAY)),
        ('"e"', None, MONDAY, TUESDAY, ("Last-Modified", MONDAY, TUESDAY)),
        (None, None, MONDAY, MONDAY, None),
        (None, None, None, TUESDAY, None),
        (None, '"e"', MONDAY, None, None),
    ],
)
def test_other_versions(
    etag: str | None, found_etag: str | None, modified: str | None, found_modified: str | None, other: object
):
    """Two ETags decide; where there are none, Last-Modified does."""
    assert other_version(etag, found_etag, modified, found_modified) == other


@pytest.mark.parametrize(
    ("modified_at", "found", "other"),
    [(1767571200, MONDAY, False), (1767571201, MONDAY, False), (1767571202, MONDAY, True), (5, "yesterday", False)],
)
def test_times_of_listings(modified_at: int, found: str, other: bool):
    """The time of a listing may be a second off."""
    assert (other_version(None, None, None, found, modified_at) is not None) is other


@pytest.mark.parametrize(
    ("etag", "found_etag", "modified", "found_modified", "modified_at", "is_first", "is_proven"),
    [
        ('"e"', '"e"', None, None, None, False, True),
        ('"e"', None, MONDAY, MONDAY, None, False, True),
        ('"e"', None, MONDAY, None, None, False, False),
        ('"e"', '""', None, MONDAY, None, False, False),
        ('"e"', None, None, None, None, True, False),
        ('"e"', None, None, MONDAY, 1767571200, True, True),
        ('"e"', None, None, "yesterday", 1767571200, True, False),
        (None, '"e"', MONDAY, None, None, False, False),
        (None, '"e"', None, None, None, True, True),
        (None, '"e"', None, None, None, False, False),
        (None, None, None, None, None, False, True),
        (None, None, None, None, 1767571200, True, False),
    ],
)
def test_what_is_proven(
    etag: str | None,
    found_etag: str | None,
    modified: str | None,
    found_modified: str | None,
    modified_at: int | None,
    is_first: bool,
    is_proven: bool,
):
    """An answer is of the known version if both have something to compare, or if neither ever had."""
    missing = lacks_proof(etag, found_etag, modified, found_modified, modified_at, is_first=is_first)
    assert (missing == "") is is_proven

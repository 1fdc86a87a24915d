"""What a measuring process is told."""

from __future__ import annotations

import json

from benchmarks.site import PART, Site, Stored

SITE = Site(
    bucket="b",
    region="r",
    endpoint="http://127.0.0.1:1",
    samples=(Stored("a", 1), Stored("é", 2)),
    large=Stored("l", 10),
    wide=Stored("w", 10 * PART),
)


def test_json_round_trip():
    """A site arrives in another process as it was."""
    assert Site.of_json(json.loads(json.dumps(SITE.as_json()))) == SITE


def test_ranges():
    """Ranges lie within the object, are the same each time, and are shorter only where the object is."""
    ranges = SITE.ranges(100)
    assert ranges == SITE.ranges(100)
    assert len(set(ranges)) > 90
    assert all(start >= 0 and stop - start == PART and stop <= SITE.wide.size for start, stop in ranges)
    assert Site(bucket="b", wide=Stored("w", 5)).ranges(2) == [(0, 5), (0, 5)]


def test_addresses():
    """URIs name bucket and key, and only http is plain."""
    assert SITE.uris == ["s3://b/a", "s3://b/é"]
    assert SITE.is_plain
    assert not Site(bucket="b").is_plain
    assert not Site(bucket="b", endpoint="https://host").is_plain

"""The stub of listings."""

from __future__ import annotations

import pytest

from benchmarks.servers.listing import PREFIX, Pages, key_of, tenth_of
from s3torch._aws.listing import parse_page

PAGES = Pages(2500)


def _page(query: str):
    head, _, body = PAGES.answer(f"/bucket?list-type=2&{query}").partition(b"\r\n\r\n")
    assert int(head.rpartition(b": ")[2]) == len(body)
    return parse_page(body)


def test_pages():
    """Page follows page to the end, and no key is lost."""
    keys: list[str] = []
    token = ""
    for count in (1000, 1000, 500):
        page = _page(f"prefix={PREFIX}{token}")
        assert len(page.object_info) == count
        keys += [info.key for info in page.object_info]
        token = f"&continuation-token={page.continuation_token}"
    assert page.continuation_token is None
    assert keys == [key_of(number) for number in range(2500)]
    assert keys == sorted(keys)


def test_start_after_and_prefix():
    """A listing may begin behind a key and end with a prefix."""
    page = _page(f"prefix={PREFIX}class_000001/&start-after={key_of(1997)}")
    assert [info.key for info in page.object_info] == [key_of(1998), key_of(1999)]
    assert _page("prefix=zzz").object_info == []
    assert len(_page("prefix=&max-keys=1").object_info) == 1


@pytest.mark.parametrize(("keys", "tenth"), [(1_000_000, 100_000), (200_000, 10_000), (5000, 1000)])
def test_tenth(keys, tenth):
    """The prefix of a tenth holds as many keys as a power of ten of directories has."""
    prefix = tenth_of(keys)
    assert sum(key_of(number).startswith(prefix) for number in range(keys)) == tenth

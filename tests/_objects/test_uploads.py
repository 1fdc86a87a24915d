"""Uploads that were neither completed nor aborted, page by page."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from s3torch._objects.uploads import MultipartUploadInfo, list_multipart_uploads


class Pages:
    """Stands for what sends: hands out pages, and notes from where each was asked for."""

    def __init__(self, *pages: dict[str, Any]) -> None:
        self._pages = list(pages)
        self.markers: list[tuple[object, object]] = []

    def call(self, name: str, bucket: str, key: str | None, method: str, **parameters: object) -> dict[str, Any]:
        assert (name, bucket, key, method) == ("ListMultipartUploads", "b", None, "list_multipart_uploads")
        assert parameters["Prefix"] == "p/"
        self.markers.append((parameters.get("KeyMarker"), parameters.get("UploadIdMarker")))
        return self._pages.pop(0)


def upload(key: str, upload_id: str, second: int) -> dict[str, object]:
    """Return an upload as a page tells it."""
    initiated = datetime.fromtimestamp(second, timezone.utc)
    return {"Key": key, "UploadId": upload_id, "Initiated": initiated, "StorageClass": "STANDARD"}


def test_all_pages():
    """Pages are asked for until there are no more; uploads come by key, the oldest first."""
    access: Any = Pages(
        {
            "Uploads": [upload("p/b", "2", 9)],
            "IsTruncated": True,
            "NextKeyMarker": "p/b",
            "NextUploadIdMarker": "2",
        },
        {"IsTruncated": True, "NextKeyMarker": "p/c"},
        {"Uploads": [upload("p/d", "4", 5), upload("p/b", "1", 3)], "IsTruncated": False, "NextKeyMarker": "p/d"},
    )
    assert list_multipart_uploads(access, "b", "p/") == [
        MultipartUploadInfo("p/b", "1", 3, "STANDARD"),
        MultipartUploadInfo("p/b", "2", 9, "STANDARD"),
        MultipartUploadInfo("p/d", "4", 5, "STANDARD"),
    ]
    assert access.markers == [(None, None), ("p/b", "2"), ("p/c", None)]


@pytest.mark.parametrize(
    "last",
    [
        {},
        {"IsTruncated": False},
        {"IsTruncated": False, "NextKeyMarker": "x"},
        {"IsTruncated": True},
        {"IsTruncated": True, "NextKeyMarker": "", "NextUploadIdMarker": ""},
        {"IsTruncated": True, "NextKeyMarker": "p/a"},
    ],
)
def test_the_last_page(last: dict[str, object]):
    """A page without more, without a way to them, or that leads to itself is the last one."""
    access: Any = Pages({"IsTruncated": True, "NextKeyMarker": "p/a"}, last)
    assert list_multipart_uploads(access, "b", "p/") == []
    assert access.markers == [(None, None), ("p/a", None)]

"""Uploads that were neither completed nor aborted, page by page."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from s3torch._aws.object_options import ObjectOptions
from s3torch._objects.upload import MultipartUpload
from s3torch._objects.uploads import MultipartUploadInfo, list_multipart_uploads
from s3torch.errors import ProtocolError


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


@pytest.mark.parametrize("last", [{}, {"IsTruncated": False}, {"IsTruncated": False, "NextKeyMarker": "x"}])
def test_the_last_page(last: dict[str, object]):
    """A page without more is the last one."""
    access: Any = Pages({"IsTruncated": True, "NextKeyMarker": "p/a"}, last)
    assert list_multipart_uploads(access, "b", "p/") == []
    assert access.markers == [(None, None), ("p/a", None)]


@pytest.mark.parametrize(
    ("page", "match"),
    [
        ({}, "not how to get them"),
        ({"NextKeyMarker": "", "NextUploadIdMarker": ""}, "not how to get them"),
        ({"NextKeyMarker": "p/a"}, "named before"),
        ({"NextKeyMarker": "p/0"}, "named before"),
    ],
)
def test_pages_that_lead_nowhere(page: dict[str, object], match: str):
    """A page that says that there are more, but not where, or leads back, is not taken for the last one."""
    before = [{"IsTruncated": True, "NextKeyMarker": marker} for marker in ("p/0", "p/a")]
    access: Any = Pages(*before, {"IsTruncated": True, **page})
    with pytest.raises(ProtocolError, match=match) as caught:
        list_multipart_uploads(access, "b", "p/")
    assert caught.value.bucket == "b"


def test_empty_pages_without_end():
    """Fresh markers and no uploads come to an end, too."""
    access: Any = Pages(*({"IsTruncated": True, "NextKeyMarker": f"p/{number}"} for number in range(2000)))
    with pytest.raises(ProtocolError, match="1000 pages of a listing in a row are empty"):
        list_multipart_uploads(access, "b", "p/")
    assert len(access.markers) == 1000


@pytest.mark.parametrize("told", [None, 0, 1, "2"])
def test_parts_that_lead_nowhere(told: object):
    """So it is with the parts of an upload: those that are missing would be sent again, or left out."""
    pages = [
        {"Parts": [{"PartNumber": 1}], "IsTruncated": True, "NextPartNumberMarker": 1},
        {"Parts": [], "IsTruncated": True, "NextPartNumberMarker": told},
    ]
    access: Any = SimpleNamespace(
        call=lambda *_, **__: pages.pop(0), config=SimpleNamespace(checksums="off", part_size=5 * 1024**2)
    )
    upload = MultipartUpload(access, "b", "k", ObjectOptions())
    with pytest.raises(ProtocolError, match="not how to get them"):
        list(upload._pages_of_parts("id"))
    assert pages == []

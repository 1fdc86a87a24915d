"""Uploads that were neither completed nor aborted, page by page."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._objects.uploads import MultipartUploadInfo
from s3torch.testing import FaultyServer
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.wire import Request, Wire

_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def upload(key: str, upload_id: str, second: int) -> str:
    """Return an upload as a page tells it."""
    return (
        f"<Upload><Key>{key}</Key><UploadId>{upload_id}</UploadId><Initiated>1970-01-01T00:00:{second:02}.000Z</Initiated>"
        "<StorageClass>STANDARD</StorageClass></Upload>"
    )


def listed(*pages: str) -> tuple[list[MultipartUploadInfo], list[dict[str, list[str]]]]:
    """Return what a client lists from a server of these pages, and what it asked for."""
    left, asked = list(pages), []

    def handler(request: Request, wire: Wire) -> None:
        asked.append(parse_qs(urlsplit(request.target).query, keep_blank_values=True))
        body = f"<ListMultipartUploadsResult {_NAMESPACE}>{left.pop(0)}</ListMultipartUploadsResult>"
        wire.respond(200, {}, body.encode())

    with ScriptedServer(handler) as server:
        config = S3ClientConfig(unsigned=True, max_attempts=1)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        return client.list_multipart_uploads("b", "p/"), asked


def markers(asked: list[dict[str, list[str]]]) -> list[tuple[Any, Any]]:
    """Return from where each page was asked for."""
    assert all(query["prefix"] == ["p/"] and query["uploads"] == [""] for query in asked)
    return [tuple(query.get(name, [None])[0] for name in ("key-marker", "upload-id-marker")) for query in asked]


def test_all_pages():
    """Pages are asked for until there are no more; uploads come by key, the oldest first."""
    found, asked = listed(
        "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextKeyMarker>p/b%2B</NextKeyMarker>"
        f"<NextUploadIdMarker>2</NextUploadIdMarker>{upload('p/b%2B+', '2', 9)}",
        "<IsTruncated>true</IsTruncated><NextKeyMarker>p/c</NextKeyMarker>",
        "<IsTruncated>false</IsTruncated><NextKeyMarker>p/d</NextKeyMarker>"
        f"{upload('p/d', '4', 5)}{upload('p/b+ ', '1', 3)}",
    )
    assert found == [
        MultipartUploadInfo("p/b+ ", "1", 3, "STANDARD"),
        MultipartUploadInfo("p/b+ ", "2", 9, "STANDARD"),
        MultipartUploadInfo("p/d", "4", 5, "STANDARD"),
    ]
    assert markers(asked) == [(None, None), ("p/b+", "2"), ("p/c", None)]


@pytest.mark.parametrize(
    "last",
    [
        "",
        "<IsTruncated>false</IsTruncated>",
        "<IsTruncated>false</IsTruncated><NextKeyMarker>x</NextKeyMarker>",
        "<IsTruncated>true</IsTruncated>",
        "<IsTruncated>true</IsTruncated><NextKeyMarker></NextKeyMarker><NextUploadIdMarker/>",
        "<IsTruncated>true</IsTruncated><NextKeyMarker>p/a</NextKeyMarker>",
    ],
)
def test_the_last_page(last: str):
    """A page without more, without a way to them, or that leads to itself is the last one."""
    found, asked = listed("<IsTruncated>true</IsTruncated><NextKeyMarker>p/a</NextKeyMarker>", last)
    assert found == []
    assert markers(asked) == [(None, None), ("p/a", None)]


def test_pages_that_lead_in_a_circle():
    """A listing whose pages lead back to an earlier one ends."""
    first, second = (f"<IsTruncated>true</IsTruncated><NextKeyMarker>p/{name}</NextKeyMarker>" for name in "ab")
    assert listed(first, second, first, "never asked for")[0] == []


def test_of_a_server():
    """What was begun is listed by its key, also an odd one, with its time; what is aborted is not."""
    odd = "p/ü &<+%20?"
    with FaultyServer() as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        writer = client.put_object("bucket", odd)
        writer.write(bytes(9 * 1024 * 1024))
        (found,) = client.list_multipart_uploads("bucket", "p/")
        assert (found.key, found.storage_class) == (odd, "STANDARD")
        assert client.list_multipart_uploads("bucket", "q") == []
        client.abort_multipart_upload("bucket", odd, found.upload_id)
        assert client.list_multipart_uploads("bucket") == []
        writer.abort()

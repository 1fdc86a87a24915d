"""Uploads that were neither completed nor aborted, page by page."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.object_options import ObjectOptions
from s3torch._objects.upload import MultipartUpload
from s3torch._objects.uploads import MultipartUploadInfo
from s3torch.errors import ProtocolError
from s3torch.testing import FaultyServer
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.wire import Request, Wire

_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_MORE = "<IsTruncated>true</IsTruncated>"


def upload(key: str, upload_id: str, second: int) -> str:
    """Return an upload as a page tells it."""
    return (
        f"<Upload><Key>{key}</Key><UploadId>{upload_id}</UploadId><Initiated>1970-01-01T00:00:{second:02}.000Z</Initiated>"
        "<StorageClass>STANDARD</StorageClass></Upload>"
    )


def listed(
    *pages: str, root: str = "ListMultipartUploadsResult"
) -> tuple[list[MultipartUploadInfo], list[dict[str, list[str]]]]:
    """Return what a client lists from a server of these pages, and what it asked for."""
    left, asked = list(pages), []

    def handler(request: Request, wire: Wire) -> None:
        asked.append(parse_qs(urlsplit(request.target).query, keep_blank_values=True))
        body = f"<{root} {_NAMESPACE}>{left.pop(0)}</{root}>"
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
    ["", "<IsTruncated>false</IsTruncated>", "<IsTruncated>false</IsTruncated><NextKeyMarker>x</NextKeyMarker>"],
)
def test_the_last_page(last: str):
    """A page without more is the last one."""
    found, asked = listed(f"{_MORE}<NextKeyMarker>p/a</NextKeyMarker>", last)
    assert found == []
    assert markers(asked) == [(None, None), ("p/a", None)]


@pytest.mark.parametrize(
    ("page", "match"),
    [
        ("", "not how to get them"),
        ("<NextKeyMarker></NextKeyMarker><NextUploadIdMarker/>", "not how to get them"),
        ("<NextKeyMarker>p/a</NextKeyMarker>", "named before"),
        ("<NextKeyMarker>p/0</NextKeyMarker>", "named before"),
    ],
)
def test_pages_that_lead_nowhere(page: str, match: str):
    """A page that says that there are more, but not where, or leads back, is not taken for the last one."""
    before = [f"{_MORE}<NextKeyMarker>{marker}</NextKeyMarker>" for marker in ("p/0", "p/a")]
    with pytest.raises(ProtocolError, match=match) as caught:
        listed(*before, f"{_MORE}{page}")
    assert caught.value.bucket == "b"


def test_a_page_that_does_not_say_whether_there_are_more():
    """What is neither true nor false is not guessed."""
    with pytest.raises(ProtocolError, match="says 'yes' where it must say whether there are more"):
        listed("<IsTruncated>yes</IsTruncated>")


def test_empty_pages_without_end():
    """Fresh markers and no uploads come to an end, too."""
    pages = [f"{_MORE}<NextKeyMarker>p/{number}</NextKeyMarker>" for number in range(2000)]
    with pytest.raises(ProtocolError, match="1000 pages of a listing in a row are empty"):
        listed(*pages)


def test_each_upload_once():
    """A server that does not know the markers sends the same uploads again: each comes once."""
    same = upload("p/a", "1", 3)
    found, _ = listed(f"{_MORE}<NextKeyMarker>p/a</NextKeyMarker>{same}", same)
    assert found == [MultipartUploadInfo("p/a", "1", 3, "STANDARD")]


@pytest.mark.parametrize("root", ["ListMultipartUploadsResult", "UploadsResult"])
def test_the_root_may_be_shortened(root: str):
    """Some servers shorten the name of the root element."""
    assert listed(upload("p/a", "1", 3), root=root)[0] == [MultipartUploadInfo("p/a", "1", 3, "STANDARD")]


@pytest.mark.parametrize("told", ["", "0", "1", "two"])
def test_parts_that_lead_nowhere(told: str):
    """So it is with the parts of an upload: those that are missing would be sent again, or left out."""
    part = "<Part><PartNumber>1</PartNumber><ETag>e</ETag><Size>5</Size></Part>"
    pages = [
        f"{_MORE}<NextPartNumberMarker>1</NextPartNumberMarker>{part}",
        f"{_MORE}<NextPartNumberMarker>{told}</NextPartNumberMarker>",
    ]

    def handler(_: Request, wire: Wire) -> None:
        wire.respond(200, {}, f"<ListPartsResult {_NAMESPACE}>{pages.pop(0)}</ListPartsResult>".encode())

    with ScriptedServer(handler) as server:
        config = S3ClientConfig(unsigned=True, max_attempts=1)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        parts = MultipartUpload(client._access, "b", "k", ObjectOptions())
        with pytest.raises(ProtocolError, match=r"not how to get them|malformed value") as caught:
            list(parts._pages_of_parts("id"))
    assert (caught.value.bucket, caught.value.key, pages) == ("b", "k", [])


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

"""Pages of ListMultipartUploads and ListParts."""

from __future__ import annotations

import pytest

from s3torch._aws.upload_listing import OpenUpload, PartsPage, StoredPart, UploadsPage, parse_parts, parse_uploads
from s3torch.errors import ProtocolError

NAMESPACE = b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
UPLOAD = b"<Upload><Key>a%20b</Key><UploadId>u</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"
PART = b'<Part><PartNumber>3</PartNumber><ETag>"e"</ETag><Size>5</Size></Part>'


def uploads(content: bytes, namespace: bytes = NAMESPACE) -> UploadsPage:
    """Return what a page says."""
    return parse_uploads(b"<ListMultipartUploadsResult%b>%b</ListMultipartUploadsResult>" % (namespace, content))


def parts(content: bytes, namespace: bytes = NAMESPACE) -> PartsPage:
    """Return what a page says."""
    return parse_parts(b"<ListPartsResult%b>%b</ListPartsResult>" % (namespace, content))


@pytest.mark.parametrize("namespace", [NAMESPACE, b""])
def test_pages(namespace: bytes):
    """Both are read with and without S3's namespace; keys are decoded where the page says that they are encoded."""
    encoding = b"<EncodingType>url</EncodingType>"
    assert uploads(UPLOAD, namespace) == UploadsPage([OpenUpload("a%20b", "u", 1767225600, None)], None)
    assert uploads(encoding + UPLOAD, namespace).uploads[0].key == "a b"
    more = b"<IsTruncated>true</IsTruncated>"
    assert uploads(more + encoding + b"<NextKeyMarker>a%20</NextKeyMarker>", namespace).following == {
        "key-marker": "a "
    }
    assert parts(PART, namespace) == PartsPage([StoredPart(3, '"e"', 5)], None, None, None)
    told = b"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>COMPOSITE</ChecksumType>"
    page = parts(more + b"<NextPartNumberMarker>3</NextPartNumberMarker>" + told + PART, namespace)
    assert page == PartsPage([StoredPart(3, '"e"', 5)], "CRC32", "COMPOSITE", 3)
    assert parts(b"<NextPartNumberMarker>3</NextPartNumberMarker>").following is None


@pytest.mark.parametrize(
    "content",
    [
        UPLOAD.replace(b"<UploadId>u</UploadId>", b""),
        UPLOAD.replace(b"<Key>a%20b</Key>", b"<Key/>"),
        UPLOAD.replace(b"2026", b"year"),
        b"<EncodingType>url</EncodingType>" + UPLOAD.replace(b"%20", b"%ff"),
    ],
)
def test_malformed_uploads(content: bytes):
    """An upload that cannot be named is refused."""
    with pytest.raises(ProtocolError, match="A page of ListMultipartUploads holds a malformed value"):
        uploads(content)


@pytest.mark.parametrize(
    "content",
    [
        PART.replace(b"3", b"three"),
        PART.replace(b"<Size>5</Size>", b""),
        PART.replace(b'"e"', b""),
        b"<IsTruncated>true</IsTruncated><NextPartNumberMarker>x</NextPartNumberMarker>",
    ],
)
def test_malformed_parts(content: bytes):
    """A part of which number, ETag or size are missing is refused."""
    with pytest.raises(ProtocolError, match="A page of ListParts holds a malformed value"):
        parts(content)


@pytest.mark.parametrize("parse", [parse_uploads, parse_parts])
@pytest.mark.parametrize(
    "document", [b"", b"<html/>", b"<ListBucketResult/>", b"{}", b"<!DOCTYPE x><ListPartsResult/>"]
)
def test_other_documents(parse, document: bytes):
    """Any other document is no listing without entries."""
    with pytest.raises(ProtocolError):
        parse(document)

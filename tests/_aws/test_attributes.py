"""What a server tells of the parts of an object."""

from __future__ import annotations

import base64

import pytest

from s3torch._aws.attributes import AttributesPage, parse_attributes
from s3torch._aws.checksums import CRC32, SHA256, Checksum
from s3torch._aws.part_checksums import Composite, ListedPart
from s3torch.errors import ProtocolError

VALUE = base64.b64encode(b"\1\2\3\4").decode()
OF_VALUE = Checksum(CRC32, b"\1\2\3\4")


def page(inner: str) -> bytes:
    return f'<GetObjectAttributesResponse xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</GetObjectAttributesResponse>'.encode()


def test_a_page():
    """All that is told is read; S3 writes a composite checksum without its number of parts."""
    document = page(
        f"<ETag>e-2</ETag><Checksum><ChecksumCRC32>{VALUE}</ChecksumCRC32><ChecksumType>COMPOSITE</ChecksumType>"
        "</Checksum><ObjectParts><IsTruncated>true</IsTruncated><NextPartNumberMarker>1</NextPartNumberMarker>"
        f"<PartsCount>2</PartsCount><Part><PartNumber>1</PartNumber><Size>5</Size><ChecksumCRC32>{VALUE}</ChecksumCRC32>"
        "</Part></ObjectParts><ObjectSize>7</ObjectSize>"
    )
    part = ListedPart(5, {CRC32: b"\1\2\3\4"})
    assert parse_attributes(document) == AttributesPage("e-2", 7, Composite(OF_VALUE, 2), [part], 1)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("", AttributesPage(None, None, None, [], None)),
        (
            f"<Checksum><ChecksumCRC32>{VALUE}</ChecksumCRC32></Checksum>",
            AttributesPage(None, None, OF_VALUE, [], None),
        ),
        (
            f"<Checksum><ChecksumCRC32>{VALUE}-3</ChecksumCRC32><ChecksumType>COMPOSITE</ChecksumType></Checksum>",
            AttributesPage(None, None, Composite(OF_VALUE, None), [], None),
        ),
        (
            (
                "<ObjectParts><TotalPartsCount>3</TotalPartsCount></ObjectParts>"
                f"<Checksum><ChecksumCRC32>{VALUE}</ChecksumCRC32><ChecksumType>FULL_OBJECT</ChecksumType></Checksum>"
            ),
            AttributesPage(None, None, OF_VALUE, [], None),
        ),
        (
            "<ObjectParts><Part><Size>1</Size><ChecksumSHA256>x</ChecksumSHA256></Part></ObjectParts>",
            AttributesPage(None, None, None, [ListedPart(1, {SHA256: None})], None),
        ),
    ],
)
def test_what_servers_leave_out(inner: str, expected: AttributesPage):
    """What is not told is None, or none."""
    assert parse_attributes(page(inner)) == expected


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<ListBucketResult/>",
        page("<ObjectSize>many</ObjectSize>"),
        page("<ObjectParts><Part><PartNumber>1</PartNumber></Part></ObjectParts>"),
        page("<ObjectParts><Part><Size>-</Size></Part></ObjectParts>"),
        page("<ObjectParts><IsTruncated>true</IsTruncated></ObjectParts>"),
        page("<ObjectParts><NextPartNumberMarker>next</NextPartNumberMarker></ObjectParts>"),
    ],
)
def test_malformed(document: bytes):
    """What is no such page, or holds nonsense, is a ProtocolError."""
    with pytest.raises(ProtocolError):
        parse_attributes(document)

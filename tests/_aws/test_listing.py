"""Tests of the pages of a listing: every key comes back as it is, and whatever is no page is refused."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch._aws import listing
from s3torch._aws.listing import ListObjectsResult, ObjectInfo, PageChain, list_parameters, parse_keys, parse_page
from s3torch.errors import ProtocolError

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'

# As Amazon S3 answers `list_objects_v2(Bucket="photos", Prefix="2024/", Delimiter="/", MaxKeys=3)`.
AMAZON = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>photos</Name><Prefix>2024/</Prefix>\
<NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken><KeyCount>3</KeyCount>\
<MaxKeys>3</MaxKeys><Delimiter>/</Delimiter><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
<Contents><Key>2024/a+cat%2Bdog.jpg</Key><LastModified>2024-02-29T23:59:59.000Z</LastModified>\
<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>\
<ChecksumType>FULL_OBJECT</ChecksumType><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents>\
<Contents><Key>2024/%C3%A9.bin</Key><LastModified>2011-02-26T01:56:20.000Z</LastModified>\
<ETag>&quot;bf1d737a4d46a19f3bced6905cc8b902-3&quot;</ETag><Owner><ID>75aa57f0</ID><DisplayName>o</DisplayName></Owner>\
<Size>5497558138880</Size><StorageClass>GLACIER</StorageClass></Contents>\
<CommonPrefixes><Prefix>2024/June+1%2F/</Prefix></CommonPrefixes></ListBucketResult>"""

# As smaller servers answer: no namespace, no encoding, indented, fewer elements.
PLAIN = b"""\
<ListBucketResult>
  <Name>photos</Name>
  <IsTruncated>false</IsTruncated>
  <Contents>
    <Key>a+b%20c &amp; d</Key>
    <LastModified>2024-02-29T23:59:59Z</LastModified>
    <ETag>"e"</ETag>
    <Size>7</Size>
  </Contents>
</ListBucketResult>
"""


def _page(*parts: str, namespace: str = "", encoding: str = "") -> bytes:
    kind = f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    return f"<ListBucketResult{namespace}>{kind}{''.join(parts)}</ListBucketResult>".encode()


def _contents(key: str = "k", *, size: str = "1", date: str = "2024-01-01T00:00:00.000Z", etag: str = '"e"') -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{date}</LastModified><ETag>{etag}</ETag>"
        f"<Size>{size}</Size></Contents>"
    )


def _keys(document: bytes) -> list[str]:
    return [info.key for info in parse_page(document).object_info]


# --- The query -------------------------------------------------------------------------------------------------------


def test_list_parameters():
    """A page is asked for in version 2, with percent-encoded keys."""
    assert list_parameters("a/", "", 1000, None) == {
        "list-type": "2",
        "encoding-type": "url",
        "max-keys": "1000",
        "prefix": "a/",
    }


def test_list_parameters_with_everything():
    """Delimiter and continuation token are sent where there are any, even an empty token."""
    assert list_parameters("", "/", 1, "t+/=") == {
        "list-type": "2",
        "encoding-type": "url",
        "max-keys": "1",
        "prefix": "",
        "delimiter": "/",
        "continuation-token": "t+/=",
    }
    assert list_parameters("", "/", 1, "")["continuation-token"] == ""


def test_list_parameters_of_a_range():
    """Where a listing begins is sent as it is."""
    assert list_parameters("a/", "", 1, None, "a/k+")["start-after"] == "a/k+"


# --- Pages -----------------------------------------------------------------------------------------------------------


def test_a_page_of_amazon():
    """Every fact of a page of Amazon S3's is found; keys and prefixes are decoded, the token is not."""
    assert parse_page(AMAZON) == ListObjectsResult(
        [
            ObjectInfo("2024/a cat+dog.jpg", '"d41d8cd98f00b204e9800998ecf8427e"', 0, 1709251199, "STANDARD"),
            ObjectInfo("2024/é.bin", '"bf1d737a4d46a19f3bced6905cc8b902-3"', 5 * 1024**4, 1298685380, "GLACIER"),
        ],
        ["2024/June 1//"],
        "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=",
    )


def test_a_page_of_a_smaller_server():
    """A page without namespace and encoding is read too; its keys are literal, and white space does not matter."""
    assert parse_page(PLAIN) == ListObjectsResult(
        [ObjectInfo("a+b%20c & d", '"e"', 7, 1709251199, None)],
        [],
        None,
    )


@pytest.mark.parametrize(
    "document",
    [
        b"<ListBucketResult/>",
        b"<ListBucketResult></ListBucketResult>\n",
        b'<?xml version="1.0"?><ListBucketResult xmlns="x"><KeyCount>0</KeyCount></ListBucketResult>',
        b"<a:ListBucketResult xmlns:a='x'><a:IsTruncated>false</a:IsTruncated></a:ListBucketResult>",
        b"<!-- c --><?p i?><ListBucketResult><!-- c --></ListBucketResult>",
        "\ufeff<ListBucketResult/>".encode(),
        b"<?xml version='1.0' encoding='utf-8' standalone='yes'?><ListBucketResult/>",
    ],
)
def test_empty_pages(document: bytes):
    """A page without objects is an empty one, however its XML is written."""
    assert parse_page(document) == ListObjectsResult([], [], None)


@pytest.mark.parametrize("namespace", ["", NAMESPACE, ' xmlns="urn:other"'])
def test_namespaces(namespace: str):
    """The namespace of a page does not matter."""
    assert _keys(_page(_contents("a"), _contents("b"), namespace=namespace)) == ["a", "b"]


@pytest.mark.parametrize(
    ("encoding", "text", "key"),
    [
        ("url", "a+b", "a b"),
        ("url", "a%20b", "a b"),
        ("url", "a%2Bb", "a+b"),
        ("url", "a%2bb", "a+b"),
        ("url", "a%252Bb", "a%2Bb"),
        ("url", "%00%01%1F%7F", "\0\x01\x1f\x7f"),
        ("url", "%0A%0D%09", "\n\r\t"),
        ("url", "%EF%BF%BF%EF%BF%BE", "\uffff\ufffe"),
        ("url", "%F0%9F%A6%9C", "🦜"),
        ("url", "é%C3%A9", "éé"),
        ("url", "100%", "100%"),
        ("url", "%zz%4", "%zz%4"),
        ("url", "&lt;&amp;&gt;&quot;&apos;", "<&>\"'"),
        ("url", "a//../b/", "a//../b/"),
        ("", "a+b%20c", "a+b%20c"),
        ("", "&#233;&#x1F99C;&#10;", "é🦜\n"),
        ("", "<![CDATA[<&>]]>x", "<&>x"),
        ("", " a ", " a "),
        ("", "a<!-- c -->b", "ab"),
    ],
)
def test_keys(encoding: str, text: str, key: str):
    """A key is unquoted if the page says that it is quoted, and literal if not; prefixes are alike."""
    prefixes = f"<CommonPrefixes><Prefix>{text}</Prefix></CommonPrefixes>"
    page = parse_page(_page(_contents(text), prefixes, encoding=encoding))
    assert [info.key for info in page.object_info] == [key]
    assert page.common_prefixes == [key]


@pytest.mark.parametrize(
    ("parts", "token"),
    [
        ("", None),
        ("<IsTruncated>false</IsTruncated>", None),
        ("<IsTruncated>false</IsTruncated><NextContinuationToken>t</NextContinuationToken>", None),
        ("<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>", "t"),
        ("<NextContinuationToken>1+%2B/=</NextContinuationToken><IsTruncated>true</IsTruncated>", "1+%2B/="),
    ],
)
def test_continuation(parts: str, token: str | None):
    """A truncated page names the next one by a token, which is literal; any other page is the last."""
    assert parse_page(_page(parts, encoding="url")).continuation_token == token


@pytest.mark.parametrize("text", ["", "True", "TRUE", "1", "yes", " true", "false "])
@pytest.mark.parametrize("token", ["", "<NextContinuationToken>t</NextContinuationToken>"])
def test_neither_the_last_nor_not(text: str, token: str):
    """A page that says neither true nor false is refused: it may not be the last."""
    document = _page(_contents("a"), f"<IsTruncated>{text}</IsTruncated>{token}")
    for parse in (parse_page, parse_keys):
        with pytest.raises(ProtocolError, match=re.escape(f"says {text!r} where it must say whether there are more")):
            parse(document)


@pytest.mark.parametrize(("tags", "is_fine"), [(400_000, True), (400_001, False)])
def test_pages_of_many_tags(tags: int, is_fine: bool):
    """A page with more tags than any server sends is refused before a tree of them is made."""
    document = _page(_contents("a"))
    document = document.replace(b"<Contents>", b"<x/>" * (tags - document.count(b"<")) + b"<Contents>")
    if is_fine:
        assert [each.key for each in parse_page(document).object_info] == ["a"]
    else:
        with pytest.raises(ProtocolError, match="more than 400000 tags"):
            parse_page(document)


@pytest.mark.parametrize("token", ["", "<NextContinuationToken/>", "<NextContinuationToken></NextContinuationToken>"])
def test_truncated_without_a_token(token: str):
    """A page that says that there are more and not how to get them is refused: a listing must not end early."""
    with pytest.raises(ProtocolError, match="there are more, and not how to get them"):
        parse_page(_page(f"<IsTruncated>true</IsTruncated>{token}"))


def test_a_token_without_the_word_on_more():
    """A page that names a next one, and does not say whether there is more, is refused, too."""
    with pytest.raises(ProtocolError, match="does not say whether there is more"):
        parse_page(_page("<NextContinuationToken>t</NextContinuationToken>"))


def test_elements_of_the_same_name_elsewhere():
    """Elements of the owner, or of the page itself, are not taken for those of an object."""
    owner = "<Owner><Key>x</Key><Size>9</Size></Owner>"
    document = _page("<Prefix>p</Prefix><Key>y</Key><Size>8</Size>", _contents().replace("<Key>", f"{owner}<Key>"))
    page = parse_page(document)
    assert [(info.key, info.size) for info in page.object_info] == [("k", 1)]
    assert page.common_prefixes == []


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("2024-01-01T00:00:00.000Z", 1704067200),
        ("2024-01-01T00:00:00Z", 1704067200),
        ("2024-01-01T00:00:00.999Z", 1704067200),
        ("2024-01-01T00:00:00.123456Z", 1704067200),
        ("2024-01-01T02:00:00+02:00", 1704067200),
        ("1970-01-01T00:00:00Z", 0),
        ("", 0),
    ],
)
def test_dates(date: str, seconds: int):
    """A date is whole seconds since the epoch; one that is left out is 0."""
    assert parse_page(_page(_contents(date=date))).object_info[0].last_modified == seconds


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process can be set on Unix only")
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_a_date_without_a_zone(monkeypatch, zone: str):
    """A date that names no zone is UTC, wherever this machine is."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        page = parse_page(_page(_contents(date="2024-01-01T00:00:00")))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert page.object_info[0].last_modified == 1704067200


@pytest.mark.parametrize(
    "date", ["yesterday", "2024-13-01T00:00:00Z", "2024-02-30T00:00:00Z", "2024-01-01T25:00:00Z", "-", "1704067200.0"]
)
def test_bad_dates(date: str):
    """A date that is none is refused, and the error shows it."""
    with pytest.raises(ProtocolError, match="holds a malformed value: "):
        parse_page(_page(_contents(date=date)))


def test_a_missing_date():
    """A server may leave dates, ETags and storage classes out."""
    page = parse_page(_page("<Contents><Key>k</Key><Size>3</Size></Contents>"))
    assert page.object_info == [ObjectInfo("k", "", 3, 0, None)]


@pytest.mark.parametrize(
    "size", ["", "-1", "x", "1.5", "1e3", "0x10", "1_000", "\u0663", "1 0", "NaN", str(2**63), "9" * 5000]
)
def test_bad_sizes(size: str):
    """A size that is no plain number, or more than 63 bits hold, is refused: reads rely on it."""
    with pytest.raises(ProtocolError, match="holds a malformed value"):
        parse_page(_page(_contents(size=size)))


def test_a_missing_size():
    """An object without a size is refused."""
    with pytest.raises(ProtocolError, match="holds a malformed value"):
        parse_page(_page("<Contents><Key>k</Key></Contents>"))


@pytest.mark.parametrize("key", ["", "<Key/>", "<Key></Key>"])
def test_a_missing_key(key: str):
    """An object without a key is refused: no object has an empty one."""
    with pytest.raises(ProtocolError):
        parse_page(_page(f"<Contents>{key}<Size>3</Size></Contents>"))


@pytest.mark.parametrize("key", ["%FF", "a%C3", "%ED%A0%80", "%C0%AF"])
def test_keys_that_are_no_utf_8(key: str):
    """A key that is quoted and no UTF-8 is refused, not replaced by another key."""
    with pytest.raises(ProtocolError, match="holds a malformed value"):
        parse_page(_page(_contents(key), encoding="url"))
    with pytest.raises(ProtocolError, match="holds a malformed value"):
        parse_page(_page(f"<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>", encoding="url"))


def test_a_full_page():
    """A page of 1,000 keys comes in its order."""
    keys = [f"shard-{number:05d}/a b+{number}.tar" for number in range(1000)]
    document = _page(*(_contents(quote_plus(key, safe="/"), size=str(len(key))) for key in keys), encoding="url")
    page = parse_page(document)
    assert [info.key for info in page.object_info] == keys
    assert [info.size for info in page.object_info] == [len(key) for key in keys]


# --- Keys and sizes only ---------------------------------------------------------------------------------------------


def _same(document: bytes) -> bool:
    """Whether the quick way through a page leads where the other one does."""
    page, quick, with_etags = parse_page(document), parse_keys(document), parse_keys(document, etags=True)
    return (
        [key.decode() for key in quick.keys] == [info.key for info in page.object_info]
        and quick.sizes == [info.size for info in page.object_info]
        and quick.continuation_token == page.continuation_token
        and quick.etags is None
        and with_etags[:3] == quick[:3]
        and [etag.decode() for etag in with_etags.etags] == [info.etag for info in page.object_info]
    )


OWNER = "<Owner><Key>x</Key><Size>9</Size></Owner>"


@pytest.mark.parametrize(
    "document",
    [
        AMAZON,
        PLAIN,
        _page(),
        _page(_contents("a"), "<CommonPrefixes><Prefix>c</Prefix></CommonPrefixes>", _contents("b")),
        _page(_contents("a"), "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"),
        _page(
            _contents("a"),
            "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>",
            _contents("b"),
        ),
        _page(_contents("a"), "<!-- ", _contents("b"), " -->", _contents("c")),
        _page(_contents("a"), "<X><![CDATA[", _contents("b"), "]]></X>", _contents("c")),
        _page("<X>", _contents("a"), "</X>"),
        _page("<X>", _contents("a"), "</X>", _contents("b")),
        _page(_contents("a"), "<X>", _contents("b"), "</X>"),
        _page(_contents("a&amp;b&#10;"), _contents("&lt;")),
        _page(_contents("a+b%2B", size="0"), _contents("é%C3%A9"), encoding="url"),
        _page(_contents("a+b%2B"), _contents("é%C3%A9")),
        _page(_contents("a!"), _contents("b?")),
        _page(_contents("a").replace("<Key>", f"{OWNER}<Key>"), _contents("b")),
        _page(_contents("a").replace("</Key>", f"</Key>{OWNER}"), _contents("b")),
        _page("<Contents><Size>1</Size><Key>k</Key></Contents>"),
        _page("<Contents><Key>k</Key><Size>1</Size></Contents>" * 2, namespace=NAMESPACE),
        b"<a:ListBucketResult xmlns:a='x'><a:Contents><a:Key>k</a:Key><a:Size>3</a:Size></a:Contents>%s"
        % b"</a:ListBucketResult>",
    ],
)
def test_keys_and_sizes(document: bytes):
    """Keys, sizes and token are those of the whole page, however it is written."""
    assert _same(document)


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 10**18 - 1))),
    st.sampled_from(["", "\n  ", "<X/>"]),
    st.booleans(),
)
def test_any_keys_and_sizes(objects: list[tuple[str, int]], between: str, is_encoded: bool):
    """Whatever keys there are, the quick way finds them as the other one does."""
    if is_encoded:
        texts = [quote_plus(key, safe="/") for key, _ in objects]
    else:
        texts = ["".join(filter(str.isprintable, escape(key))) + "." for key, _ in objects]
    parts = [_contents(text, size=str(size)) for text, (_, size) in zip(texts, objects, strict=True)]
    document = _page(between.join(parts), encoding="url" if is_encoded else "")
    assert _same(document)
    if is_encoded:
        assert [(key.decode(), size) for key, size in zip(*parse_keys(document)[:2], strict=True)] == objects


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<Error><Code>x</Code></Error>",
        _page(_contents("a"))[:-1],
        _page(_contents("a"), "<IsTruncated>true</IsTruncated>"),
        _page(_contents("%FF"), encoding="url"),
        _page(_contents("a")).replace(b"<Key>a", b"<Key>\xff"),
        _page(_contents("a")).replace(b"ListBucketResult", b"Other"),
        _page(_contents("")),
        _page(_contents("a", size="")),
        _page(_contents("a", size="-1"), _contents("b")),
        _page(_contents("a"), _contents("b")).replace(b"<Size>1</Size></Contents></List", b"</Contents></List"),
        _page("<Contents><Key>a</Key></Contents><Contents><Key>b</Key><Size>1</Size><Size>1</Size></Contents>"),
        b"<!DOCTYPE x>" + _page(_contents("a")),
        _page("<Contents>" + _contents("a")),
    ],
)
def test_keys_and_sizes_of_what_is_no_page(document: bytes):
    """What is refused as a page is refused by the quick way too."""
    with pytest.raises(ProtocolError):
        parse_page(document)
    with pytest.raises(ProtocolError):
        parse_keys(document)


@pytest.mark.parametrize(("begin", "end"), [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?x ", "?>")])
def test_what_is_hidden_is_no_object(begin: str, end: str):
    """Objects in a comment, a CDATA section or an instruction are none, the quick way, too."""
    document = _page(_contents("a") + begin + _contents("hidden") + end + _contents("b"))
    assert [info.key for info in parse_page(document).object_info] == ["a", "b"]
    assert parse_keys(document)[0] == [b"a", b"b"]
    hidden = f"{begin}</Contents><Contents><Key>hidden</Key><Size>1</Size>{end}</Contents>"
    document = _page(_contents("a").replace("</Contents>", hidden))
    assert [info.key for info in parse_page(document).object_info] == ["a"]
    assert parse_keys(document)[0] == [b"a"]


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_plain_pages_are_read_the_quick_way(count: int, monkeypatch: pytest.MonkeyPatch):
    """Where objects stand in one run no tree of elements is made of them."""
    document = _page(*(_contents(f"k?{number}") for number in range(count)))
    monkeypatch.setattr(listing, "parse_page", None)
    page = parse_keys(document)
    assert (page.keys, page.sizes) == ([f"k?{number}".encode() for number in range(count)], [1] * count)
    assert parse_keys(document, etags=True).etags == [b'"e"'] * count


@pytest.mark.parametrize("inner", ["<Key>z</Key>", "<Size>3</Size>"])
@pytest.mark.parametrize("outer", ["<Key>a{}b</Key><Size>1</Size>", "<Key>a</Key><Size>1{}</Size>"])
def test_one_value_inside_another(outer: str, inner: str):
    """An element inside a key or a size is not taken for the key or the size."""
    document = _page(f"<Contents>{outer.format(inner)}</Contents>")
    page = parse_page(document)
    assert parse_keys(document)[:2] == ([info.key.encode() for info in page.object_info], [1])


@pytest.mark.parametrize(
    "etag",
    [
        '"e"',
        "&quot;e&quot;",
        "&#34;e&#34;",
        "&#x22;e&#x22;",
        "e",
        "",
        "W/&quot;e&quot;",
        "a b",
        "&quot;a&amp;b&quot;",
        "&quot;&lt;e>&quot;",
        " &quot;e&quot;\n",
        "é",
        "<X/>e",
        "<!-- c -->e",
        "<ETag>e</ETag>",
        "<Key>z</Key>",
    ],
)
def test_etags(etag: str):
    """However an ETag is written, the quick way finds it as the other one does, and those of the objects beside it."""
    document = _page(_contents("a"), _contents("b", etag=etag), _contents("c", etag="&quot;f-2&quot;"), encoding="url")
    assert _same(document)
    assert parse_keys(document, etags=True).etags[::2] == [b'"e"', b'"f-2"']


@pytest.mark.parametrize(
    "contents",
    [
        "<Contents><Key>k</Key><Size>1</Size><ETag>{}</ETag></Contents>",
        "<Contents><Key>k</Key><ETag>{}</ETag><Size>1</Size></Contents>",
        "<Contents><Key>k</Key><Owner><ETag>o</ETag></Owner><ETag>{}</ETag><Size>1</Size></Contents>",
        "<Contents><Key>k</Key><ETag>{0}</ETag><Size>1</Size><ETag>{0}</ETag></Contents>",
        "<Contents><Key>k</Key><Size>1</Size></Contents>",
    ],
)
def test_etags_in_any_place(contents: str):
    """Elements come in any order, twice, or not at all: the quick way finds what the other one does."""
    other = contents.replace("<Key>k", "<Key>l").replace(
        "<Size>1</Size><ETag>{}</ETag>", "<ETag>{}</ETag><Size>1</Size>"
    )
    assert _same(_page(contents.format("e")))
    assert _same(_page(contents.format("e"), other.format("f")))
    assert _same(_page(contents.format("e"), "<Contents><Key>m</Key><Size>2</Size></Contents>", other.format("f")))


# --- What is no page -------------------------------------------------------------------------------------------------

# Each entity is ten of the one before: the last would be 300 GB.
LAUGHS = '<!ENTITY l0 "lol">' + "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 12))


@pytest.mark.parametrize(
    "document",
    [
        f"<!DOCTYPE l [{LAUGHS}]><ListBucketResult>&l11;</ListBucketResult>".encode(),
        f'<?xml version="1.0"?><!DOCTYPE ListBucketResult [{LAUGHS}]>'.encode() + _page(_contents("&l11;")),
        b'<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + _page(_contents("&x;")),
        b'<!DOCTYPE l SYSTEM "http://127.0.0.1:9/l.dtd"><ListBucketResult/>',
        b"<!DOCTYPE html><html></html>",
        b"<!DOCTYPE l [" + b"x" * 1000,
    ],
)
def test_document_types_are_refused(document: bytes):
    """A document type is refused before any entity that it declares could be expanded or fetched."""
    with pytest.raises(ProtocolError, match="with a document type was answered"):
        parse_page(document)


def test_a_document_type_in_another_encoding():
    """An entity bomb is refused in UTF-16 too."""
    with pytest.raises(ProtocolError):
        parse_page(f"<!DOCTYPE l [{LAUGHS}]><ListBucketResult>&l11;</ListBucketResult>".encode("utf-16"))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b" ",
        b"\0",
        b"not XML",
        b"{}",
        b"<",
        b"<ListBucketResult>",
        b"<ListBucketResult></Contents>",
        b"<ListBucketResult/><ListBucketResult/>",
        b"<ListBucketResult/>x",
        b"<ListBucketResult>&unknown;</ListBucketResult>",
        b"<ListBucketResult>\x01</ListBucketResult>",
        b"<ListBucketResult>&#1;</ListBucketResult>",
        b"<ListBucketResult>\xff</ListBucketResult>",
        b"<a:ListBucketResult/>",
        b"<ListBucketResult a='1' a='2'/>",
        AMAZON[:-1],
        AMAZON[: len(AMAZON) // 2],
        AMAZON + b"\0",
    ],
)
def test_malformed_documents(document: bytes):
    """What is not well-formed is refused, a page that was cut short above all."""
    with pytest.raises(ProtocolError, match="is not well-formed XML"):
        parse_page(document)


@pytest.mark.parametrize("cut", range(0, len(AMAZON), 7))
def test_a_page_that_was_cut(cut: int):
    """A page that was cut anywhere is refused: a listing must not end early."""
    with pytest.raises(ProtocolError):
        parse_page(AMAZON[:cut])


@pytest.mark.parametrize("name", ["foo", "utf-7", "hex", "rot13", "idna", "punycode", "utf-16", "utf-32", "undefined"])
def test_declared_encodings(name: str):
    """S3 writes UTF-8: a document is read as that, whatever it declares, so that no declaration can hide entities."""
    declaration = f'<?xml version="1.0" encoding="{name}"?>'
    page = parse_page(
        f"{declaration}<ListBucketResult><Contents><Key>ü</Key><Size>1</Size></Contents></ListBucketResult>".encode()
    )
    assert [info.key for info in page.object_info] == ["ü"]
    with pytest.raises(ProtocolError, match="document type"):
        parse_page(f'{declaration}<!DOCTYPE a [<!ENTITY b "c">]><ListBucketResult/>'.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-7", "cp037", "latin-1"])
def test_other_encodings(encoding: str):
    """A document in another encoding than UTF-8 is refused, or means the same in both."""
    document = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE ü><ListBucketResult/>'.encode(encoding)
    with pytest.raises(ProtocolError):
        parse_page(document)


@pytest.mark.parametrize("root", ["Error", "html", "ListAllMyBucketsResult", "listbucketresult", "Contents"])
def test_another_root(root: str):
    """A document of another kind is refused, and the error names it."""
    with pytest.raises(ProtocolError, match=f"A listing was asked for, and '{root}' was answered"):
        parse_page(f"<{root}{NAMESPACE}><Code>x</Code></{root}>".encode())


def test_a_deep_document():
    """A hundred thousand elements in each other are refused like any other document."""
    with pytest.raises(ProtocolError, match="'a' was answered"):
        parse_page(b"<a>" * 100_000 + b"</a>" * 100_000)


# --- Anything at all -------------------------------------------------------------------------------------------------

# What XML 1.0 cannot hold: https://www.w3.org/TR/xml/#charsets. A carriage return it can, but reads as a line feed.
in_xml = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1)


@given(st.lists(st.text(min_size=1), max_size=8), st.sampled_from([quote, quote_plus]), st.sampled_from(["", "/"]))
@example(["".join(map(chr, itertools.chain(range(0x180), [0xFFFE, 0xFFFF])))], quote_plus, "")
def test_encoded_keys_round_trip(keys: Sequence[str], encode, safe: str):
    """Any keys that a server encodes come back, whichever of the usual ways it does it."""
    assert _keys(_page(*(_contents(encode(key, safe=safe)) for key in keys), encoding="url")) == list(keys)


@given(st.lists(in_xml, max_size=8))
def test_literal_keys_round_trip(keys: list[str]):
    """Any keys that XML can hold come back from a server that does not encode them."""
    assert _keys(_page(*(_contents(escape(key)) for key in keys))) == keys


@given(st.binary(max_size=300))
def test_any_bytes(document: bytes):
    """Whatever is answered, the only error is ProtocolError."""
    try:
        parse_page(document)
    except ProtocolError:
        pass


@given(
    st.sampled_from([AMAZON, PLAIN]),
    st.lists(
        st.tuples(
            st.integers(0, len(AMAZON)),
            st.integers(0, 40),
            st.binary(max_size=4)
            | st.sampled_from(
                [b"<Contents>", b"</Contents>", b"<Key>", b"<Size>", b"&#0;", b"%FF", b"-", b"<!DOCTYPE"]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_damaged_pages(document: bytes, damages: list[tuple[int, int, bytes]]):
    """A page in which something was lost or replaced is still a page, or is a ProtocolError."""
    for start, length, replacement in damages:
        document = document[:start] + replacement + document[start + length :]
    try:
        page = parse_page(document)
    except ProtocolError:
        return
    assert all(info.size >= 0 for info in page.object_info)


def test_pages_are_values():
    """Objects of a listing are frozen, equal to their like and hashable."""
    info = ObjectInfo("k", '"e"', 1, 0)
    assert info == ObjectInfo("k", '"e"', 1, 0, None)
    assert hash(info) == hash(ObjectInfo("k", '"e"', 1, 0))
    with pytest.raises(AttributeError):
        info.size = 2


# --- What servers write otherwise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", range(10))
@pytest.mark.parametrize("zone", ["Z", "+00:00", "+0000", ""])
def test_decimals_of_a_time(decimals: int, zone: str):
    """A time may have up to nine decimals, on every version of Python."""
    fraction = f".{'9' * decimals}" if decimals else ""
    document = _page(_contents("a")).decode()
    document = re.sub("<LastModified>.*?</", f"<LastModified>2024-02-29T23:59:59{fraction}{zone}</", document)
    assert [info.last_modified for info in parse_page(document.encode()).object_info] == [1709251199]


CONTROLS = "".join(map(chr, [*range(1, 32), 0x7F, 0x85, 0xFFFE, 0xFFFF]))


def _of_key(key: str) -> bytes:
    """Return a page as a server writes it that encodes nothing but what XML must have encoded."""
    return f"<ListBucketResult><Contents><Key>{escape(key)}</Key><Size>1</Size></Contents></ListBucketResult>".encode()


@pytest.mark.parametrize("key", [f"a{character}b" for character in CONTROLS] + [CONTROLS, f"{CONTROLS}\ue000"])
def test_control_characters(key: str):
    """A key is read as it is where a server writes characters that XML does not know, or would change."""
    assert _keys(_of_key(key)) == [key]
    assert parse_keys(_of_key(key)).keys == [key.encode()]


@pytest.mark.parametrize("written", ["&#{};", "&#x{:x};", "&#x{:X};", "&#00{};", "&#x0{:X};"])
def test_references_to_control_characters(written: str):
    """So it is where they are written as references, which XML 1.0 does not permit either."""
    for character in CONTROLS:
        page = _of_key("a@b").replace(b"@", written.format(ord(character)).encode())
        assert _keys(page) == [f"a{character}b"]


def test_control_characters_beside_private_ones():
    """A page that has characters of all three private use areas leaves none to stand for control characters."""
    assert _keys(_of_key("\1\ue000\U000f0001")) == ["\1\ue000\U000f0001"]
    with pytest.raises(ProtocolError, match="private use"):
        parse_page(_of_key("\1\ue000\U000f0001\U00100002"))


# --- The end of a listing --------------------------------------------------------------------------------------------


def test_a_page_again_under_a_fresh_token():
    """A server that does not heed the token sends its first page for ever."""
    chain = PageChain()
    chain.check("1", is_empty=False, first="a")
    chain.add("1", is_empty=False, first="a")
    chain.check("2", is_empty=False, first="b")
    chain.add("2", is_empty=False, first="b")
    for token in ("3", None):
        with pytest.raises(ProtocolError, match="begins with 'a', as one before it"):
            chain.check(token, is_empty=False, first="a")


def test_a_circle_of_pages():
    """A token that came before is refused, however long ago that was."""
    chain = PageChain()
    for token in ("a", "b", "c"):
        chain.check(token, is_empty=False)
        chain.add(token, is_empty=False)
    for token in ("a", "b", "c"):
        with pytest.raises(ProtocolError, match=f"names '{token}' as the next, which was named before"):
            chain.check(token, is_empty=False)
    chain.check("d", is_empty=False)
    chain.check(None, is_empty=True)


def test_empty_pages_without_end():
    """A few empty pages are legal, and do not add up over those that are not."""
    chain = PageChain()
    for number in range(3000):
        is_empty = number % 1000 != 0
        chain.check(number, is_empty=is_empty)
        chain.add(number, is_empty=is_empty)
    with pytest.raises(ProtocolError, match="1000 pages of a listing in a row are empty"):
        chain.check(3000, is_empty=True)
    chain.check(None, is_empty=True)
    chain.check(3000, is_empty=False)


COUNTED = (
    b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>%s</KeyCount>"
    b"<Contents><Key>a</Key><Size>1</Size></Contents><Contents>%s<Key>b</Key><Size>1</Size></Contents>%s"
    b"</ListBucketResult>"
)


@pytest.mark.parametrize("parse", [parse_page, parse_keys])
@pytest.mark.parametrize("more", [b"", b"<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>"])
@pytest.mark.parametrize("space", [b"", b" "])
def test_pages_that_are_cut_short(parse: Callable[[bytes], object], more: bytes, space: bytes):
    """A page that says that it has more entries than it has is refused; fewer some servers say of common prefixes."""
    entries = 3 if more else 2
    for told in (b"", b"0", b"2", b"%d" % entries, b"many", b"-1", b" "):
        parse(COUNTED % (told, space, more))
    for told in (b"%d" % (entries + 1), b"1000"):
        with pytest.raises(ProtocolError, match=f"has {told.decode()} entries, and has {entries}: it is cut short"):
            parse(COUNTED % (told, space, more))

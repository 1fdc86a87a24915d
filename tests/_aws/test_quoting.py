"""Tests of what is quoted of a body that is no error of S3's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch._aws.quoting import is_page, quote

NGINX = b"""<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n\
<center><h1>413 Request Entity Too Large</h1></center>\r\n<hr><center>nginx/1.25</center>\r\n</body>\r\n</html>"""


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b" \r\n\t", ""),
        (b"Client sent an HTTP request to an HTTPS server.\n", "Client sent an HTTP request to an HTTPS server."),
        (NGINX, "413 Request Entity Too Large 413 Request Entity Too Large nginx/1.25"),
        (b"<!DOCTYPE html>\n<HTML><body>Log in<script>let a = 1</script> here&nbsp;&amp; now", "Log in here & now"),
        (b'{"error": "quota"}', '{"error": "quota"}'),
        ("é 日本".encode(), "é 日本"),
        (b"\0\xff\x1b[31mred", "[31mred"),
        (b"word " * 100, ("word " * 40).rstrip() + "..."),
        (b"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/x, Signature=ab", "Authorization: ... Signature=..."),
        (b"x-amz-security-token: hidden", "x-amz-security-token: ..."),
        (b"Proxy-Authorization: Basic aGlkZGVu ok", "Proxy-Authorization: ... ok"),
        (b'{"SecretAccessKey" : "hid den"}', '{"SecretAccessKey" : ...}'),
        (b"?X-Amz-Signature=hidden&a", "?X-Amz-Signature=..."),
        (b"the key AKIAIOSFODNN7EXAMPLE", "the key ..."),
        (b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY is bad", "... is bad"),
        (b"a-path/of/some/words.txt", "a-path/of/some/words.txt"),
    ],
)
def test_quote(body: bytes, text: str):
    """What people can read is quoted, in 200 characters at most, and nothing that looks like a secret."""
    assert quote(body) == text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (NGINX, True),
        (b"\n <!doctype HTML>", True),
        (b"<!-- x --><html lang=en>", True),
        (b"<Error><Code>x</Code></Error>", False),
        (b"<?xml version='1.0'?><html/>", False),
        (b"plain <html>", False),
        (b"", False),
    ],
)
def test_is_page(body: bytes, expected: bool):
    """A web page is told from XML and from text by how it begins."""
    assert is_page(body) is expected


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from([b"<html>", b"<", b">", b"<!--", b"key=", b"a"])).map(b"".join)
)
def test_any_body(body: bytes):
    """Whatever a body is, what is quoted of it is short and printable."""
    text = quote(body)
    assert len(text) <= 203
    assert text.isprintable()


@pytest.mark.parametrize("piece", [b"<", b"<!--", b"<title>", b"<script>", b"key:", b"a", b"key='", b" "])
def test_long_bodies(piece: bytes):
    """A large body costs no time that grows with it."""
    quote(b"<html>" + piece * 300_000)
    quote(piece * 300_000)

"""Tests of where a bucket answers."""

from __future__ import annotations

import dataclasses

import pytest

from s3torch._aws.endpoint import Endpoint, check_endpoint_url, endpoint_of_bucket_url
from s3torch._transfer.connection import Origin
from s3torch.errors import ConfigError


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.example.com",
        "https://s3.example.com/",
        "http://localhost:9000",
        "http://127.0.0.1:65535",
        "http://[::1]:9000",
        "HTTPS://S3.Example.com",
        "https://gateway.example.com/s3/v1",
        "http://minio",
    ],
)
def test_good_endpoints(url: str):
    """An endpoint with scheme, host and perhaps port and path is returned as it is."""
    assert check_endpoint_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3.example.com",
        "localhost:9000",
        "127.0.0.1:9000",
        "//s3.example.com",
        "ftp://s3.example.com",
        "s3://bucket",
        "https://",
        "https://:9000",
        "https:///path",
        "https://s3.example.com:0",
        "https://s3.example.com?x=y",
        "https://s3.example.com/#f",
    ],
)
def test_bad_endpoints(url: str):
    """An endpoint that cannot be used is refused; the error shows it and how to write one."""
    with pytest.raises(ConfigError) as caught:
        check_endpoint_url(url)
    assert str(caught.value) == (f"The endpoint {url!r} cannot be used: write it like 'https://s3.example.com:9000'.")


@pytest.mark.parametrize(
    "url",
    ["https://s3 .example.com", "https://s3.example.com/a b", "https://ü.example.com", "https://s3.example.com/\x7f"],
)
def test_endpoints_that_cannot_be_sent(url: str):
    """An endpoint with anything but printable ASCII, or with a space, would tear the head of a request."""
    with pytest.raises(ConfigError, match="only printable ASCII without spaces can be sent"):
        check_endpoint_url(url)


@pytest.mark.parametrize(
    "url",
    ["https://h:port", "https://h:65536", "https://h:-1", "https://[::1", "https://[nonsense]:80", "http://::1]:80"],
)
def test_endpoints_that_are_no_urls(url: str):
    """An endpoint that is no URL is refused, and the error shows it."""
    with pytest.raises(ConfigError, match=r"The endpoint '.*' is not a URL: ") as caught:
        check_endpoint_url(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("url", ["http://my.bucket.[::1]:9000/", "http://bucket.[::1]/"])
def test_bucket_before_an_ipv6_address(url: str):
    """No bucket fits in front of an IPv6 address; its requests would be for another one."""
    with pytest.raises(ConfigError, match="in front of an IPv6 address"):
        endpoint_of_bucket_url(url)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (
            "https://photos.s3.amazonaws.com/",
            Endpoint(Origin("https", "photos.s3.amazonaws.com", 443), "photos.s3.amazonaws.com", ""),
        ),
        (
            "https://s3.eu-west-1.amazonaws.com/my.photos/",
            Endpoint(Origin("https", "s3.eu-west-1.amazonaws.com", 443), "s3.eu-west-1.amazonaws.com", "/my.photos"),
        ),
        (
            "http://127.0.0.1:9000/photos/",
            Endpoint(Origin("http", "127.0.0.1", 9000), "127.0.0.1:9000", "/photos"),
        ),
        ("http://[::1]:9000/photos/", Endpoint(Origin("http", "::1", 9000), "[::1]:9000", "/photos")),
        ("http://[::1]/photos/", Endpoint(Origin("http", "::1", 80), "[::1]", "/photos")),
        ("http://photos.h.com:80/", Endpoint(Origin("http", "photos.h.com", 80), "photos.h.com", "")),
        ("https://photos.h.com:443/", Endpoint(Origin("https", "photos.h.com", 443), "photos.h.com", "")),
        ("https://photos.h.com:80/", Endpoint(Origin("https", "photos.h.com", 80), "photos.h.com:80", "")),
        ("https://h.com/s3/photos/", Endpoint(Origin("https", "h.com", 443), "h.com", "/s3/photos")),
        ("https://photos.h.com", Endpoint(Origin("https", "photos.h.com", 443), "photos.h.com", "")),
    ],
)
def test_endpoint_of_bucket_url(url: str, endpoint: Endpoint):
    """Origin, Host field and path come from the URL of a bucket; a scheme's own port is not in the Host field."""
    assert endpoint_of_bucket_url(url) == endpoint


def test_an_endpoint_is_a_value():
    """An endpoint is frozen and hashable."""
    endpoint = endpoint_of_bucket_url("https://photos.h.com/")
    assert hash(endpoint) == hash(endpoint_of_bucket_url("https://photos.h.com/"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        endpoint.host = "other"


@pytest.mark.parametrize("scheme", ["http://", "https://", "", "ftp://"])
@pytest.mark.parametrize(
    "password", ["p4ss", "p4ss#w", "p4ss/w", "p4ss?w", "p4ss[w", "12#p4ss", "p4ss w", "p4ss@w", "é"]
)
def test_no_password_is_shown(scheme: str, password: str):
    """Whatever a URL with a user and a password looks like, errors show neither."""
    url = f"{scheme}us3r:{password}@host:9000"
    with pytest.raises(ConfigError) as caught:
        check_endpoint_url(url)
    shown = f"{caught.value} {caught.value.__cause__!r}"
    assert not [part for part in ("us3r", "p4ss", "12#") if part in shown]

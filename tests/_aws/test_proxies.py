"""Tests of which proxy leads to a server: the same as botocore's, with networks in NO_PROXY beside."""

from __future__ import annotations

import base64
import logging
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3torch import S3ClientConfig
from s3torch._aws.proxies import parse_proxy, proxy_of
from s3torch._aws.session import AwsSession
from s3torch._transfer.connection import Origin
from s3torch._transfer.proxy import Proxy
from s3torch.errors import ArgumentTypeError, ConfigError, S3Error
from tests.support.networks import ScriptedProxy

HTTPS = Origin("https", "bucket.s3.example.com", 443)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)
    return


ORIGINS = [
    HTTPS,
    Origin("http", "bucket.s3.example.com", 80),
    Origin("https", "s3.example.com", 9000),
    Origin("http", "localhost", 9000),
    Origin("https", "10.1.2.3", 443),
    Origin("https", "elsewhere.test", 443),
]
ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"HTTPS_PROXY": "http://proxy:3128"},
    {"https_proxy": "proxy:3128", "HTTPS_PROXY": "http://other:1"},
    {"HTTP_PROXY": "http://us%40er:p%3Aw@proxy"},
    {"HTTP_PROXY": "http://proxy:1", "REQUEST_METHOD": "GET"},
    {"HTTPS_PROXY": "//proxy:3128"},
    {"HTTPS_PROXY": "http://user@proxy:3128"},
    {"ALL_PROXY": "http://proxy:3128"},
    *(
        {"HTTPS_PROXY": "http://proxy:3128", "http_proxy": "http://proxy:3129", name: value}
        for name in ("NO_PROXY", "no_proxy")
        for value in (
            "",
            "*",
            "example.com",
            ".example.com",
            "s3.example.com",
            "s3.example.com:9000",
            "example.com:443",
            "xample.com",
            "localhost, elsewhere.test",
            "LOCALHOST:9000",
            "10.1.2.3",
            "10.1.2.3:443",
            "bucket.s3.example.com:80,other.test",
        )
    ),
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=repr)
def test_as_botocore_reads_them(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """For each environment and endpoint it is the proxy that botocore would use."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for origin in ORIGINS:
        url = str(origin)
        theirs = ProxyConfiguration(get_environ_proxies(url))
        named = theirs.proxy_url_for(url)
        ours = proxy_of(origin, None)
        assert (ours is None) is (named is None)
        if ours is not None:
            assert named.rpartition("@")[2].removeprefix("http://").partition(":")[0] == ours.host
            field = theirs.proxy_headers_for(named).get("Proxy-Authorization")
            assert ours.authorization == field


@pytest.mark.parametrize(
    ("entry", "host", "is_direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3/8", "10.200.0.1", True),
        ("x.test, 192.168.0.0/16", "192.168.7.7", True),
        ("fd00::/8", "fd12::1", True),
        ("[fd12::1]", "fd12::1", True),
        ("fd00::/8", "fe80::1", False),
        ("10.0.0.0/8", "bucket.s3.example.com", False),
        ("nonsense/99", "10.1.2.3", False),
    ],
)
def test_networks_in_no_proxy(entry: str, host: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch):
    """An endpoint that is an IP address is reached directly if NO_PROXY names a network that it lies in."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", entry)
    assert (proxy_of(Origin("https", host, 443), None) is None) is is_direct


def test_what_is_given_counts_alone(monkeypatch: pytest.MonkeyPatch):
    """Where the configuration names proxies the environment counts for nothing, as for botocore."""
    monkeypatch.setenv("HTTPS_PROXY", "http://other:1")
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_of(HTTPS, {"https": "http://user:pass@proxy:3128"}) == Proxy(
        "proxy", 3128, Proxy.basic("user", "pass")
    )
    monkeypatch.delenv("NO_PROXY")
    assert proxy_of(HTTPS, {}) is None
    assert proxy_of(HTTPS, {"http": "http://proxy:3128"}) is None
    assert proxy_of(HTTPS, {"https": ""}) is None


def test_characters_of_passwords():
    """User and password are percent-decoded, and may be any text."""
    found = parse_proxy("http://us%40er:p%3A%2F%C3%BC@[::1]:8080", "x")
    assert found == Proxy("::1", 8080, Proxy.basic("us@er", "p:/ü"))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://user:secret@proxy:3128", "reaches proxies over plain HTTP, not 'https'"),
        ("socks5://user:secret@proxy:3128", "not 'socks5'"),
        ("http://user:secret@:3128", "write it like"),
        ("http://user:secret@proxy:port", "write it like"),
        ("http://user:secret@proxy:0", "write it like"),
        ("http://user:secret@pr oxy:1", "write it like"),
        ("http://user:secret@[::1:1", "write it like"),
    ],
)
def test_proxies_that_cannot_be_used(url: str, text: str):
    """A URL that cannot be used is refused with words, and neither user nor password is shown."""
    with pytest.raises(ConfigError, match=text) as caught:
        parse_proxy(url, "HTTPS_PROXY")
    assert "HTTPS_PROXY" in str(caught.value)
    assert "secret" not in str(caught.value)


ODD = st.text(st.sampled_from("ab1:/?#@[]%;\\ '\"\udcffé*"), max_size=4)
SCHEMES = st.sampled_from(["http://", "", "//", "http:/", "HTTP://", "https://", "socks5://", "ftp://", "us3rn4me://"])
URLS = st.builds("{}{}{}{}".format, SCHEMES, ODD, st.just("us3rn4me"), ODD).flatmap(
    lambda begin: st.builds(
        "{}{}{}{}{}".format,
        st.just(begin),
        st.sampled_from([":", "", "%3A"]),
        st.builds("{}p4ssw0rd{}s3cr3t".format, ODD, ODD),
        ODD,
        st.sampled_from(["@127.0.0.1:9", "@[::1]:9", "@proxy.test", "%40127.0.0.1:9", "@127.0.0.1:99999", "@:9", "@"]),
    )
)
PARTS = ("us3rn4me", "p4ssw0rd", "s3cr3t")


def shown_of(error: BaseException) -> str:
    """Return all that a traceback shows of an error, and its representation."""
    return f"{error!r} {error.__dict__} {''.join(traceback.format_exception(error))}"


def without_source(text: str) -> str:
    """Return a traceback without lines of source code, which are this test's."""
    return "\n".join(line for line in text.split("\n") if not line.startswith("  "))


@settings(max_examples=500, deadline=None)
@given(url=URLS)
def test_no_part_of_a_proxy_url_is_shown(url: str):
    """Whatever the URL of a proxy looks like: it is refused or used, and user and password are shown nowhere."""
    assert {"p4ssw0rd", "s3cr3t"} <= {part for part in PARTS if part in url}
    try:
        proxy = parse_proxy(url, "HTTPS_PROXY")
    except ConfigError as error:
        shown = without_source(shown_of(error))
    else:
        told = (repr(proxy), str(proxy), proxy.refusal("o", 407), proxy.refusal("o", 502), proxy.failure("o", "x"))
        shown = f"{' '.join(map(str, told))} {proxy.tunnel_request('o', 1).partition(b'Proxy-Auth')[0]!r}"
        shown += repr(S3ClientConfig(proxies={"https": url}))
    assert not [part for part in PARTS if part in shown.lower()], shown


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(url=URLS.filter(lambda url: "\0" not in url), is_given=st.booleans())
def test_no_part_of_a_proxy_url_is_shown_by_botocore(
    url: str, is_given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """So it is where botocore asks for credentials through the proxy: in errors, their causes, and the log."""
    token = tmp_path / "token"
    token.write_text("token")
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    with monkeypatch.context() as patched:
        for name, value in {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
            "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:8",
            "AWS_MAX_ATTEMPTS": "1",
            **({} if is_given else {"HTTP_PROXY": url}),
        }.items():
            patched.setenv(name, value)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patched.delenv(name, raising=False)
        config = S3ClientConfig(proxies={"http": url} if is_given else None)
        with pytest.raises(S3Error) as caught:
            AwsSession(config, "us-east-1", None).credentials()
    shown = without_source(shown_of(caught.value)) + caplog.text
    assert not [part for part in PARTS if part in shown], shown


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pa#ss@proxy:3128",
        "http://user:1234#ss@proxy:3128",
        "http://user:1234/ss@proxy:3128",
        "http://user:1234?ss@proxy:3128",
        "user:pa://ss@proxy:3128",
        "http://user/:pass%40proxy:3128",
        "http://user%3Apass%40proxy:3128",
    ],
)
def test_how_passwords_are_written(url: str):
    """What is not percent-encoded does not make a proxy of a user's name, and the error says how it is written."""
    with pytest.raises(ConfigError, match="must be percent-encoded"):
        parse_proxy(url, "HTTPS_PROXY")


def test_passwords_in_another_coding():
    """What the environment holds in another coding than UTF-8 is sent as it is; what is no text is refused."""
    latin = parse_proxy(f"http://user:{os.fsdecode(b'p' + bytes([0xE9]))}@proxy:1", "x")
    assert base64.b64decode((latin.authorization or "").removeprefix("Basic ")) == b"user:p\xe9"
    with pytest.raises(ConfigError, match="cannot be used"):
        parse_proxy("http://user:p\ud800@proxy:1", "x")


def test_the_configuration_keeps_secrets():
    """The text of a configuration shows no proxies, it keeps a copy, and may be a key of a dictionary."""
    given = {"https": "http://user:secret@proxy:3128"}
    config = S3ClientConfig(proxies=given, client_cert="cert.pem")
    given.clear()
    assert config.proxies == {"https": "http://user:secret@proxy:3128"}
    assert "secret" not in repr(config)
    assert {config: 1}[config] == 1
    assert config != S3ClientConfig(client_cert="cert.pem")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"proxies": "http://user:secret@proxy"}, ArgumentTypeError),
        ({"proxies": {"https": 1}}, ArgumentTypeError),
        ({"proxies": {"ftp": "http://user:secret@proxy"}}, ConfigError),
        ({"proxies": {"https://": "http://user:secret@proxy"}}, ConfigError),
        ({"client_cert": 1}, ArgumentTypeError),
        ({"client_cert": ("a", "b", "c")}, ArgumentTypeError),
        ({"client_cert": ("a", None)}, ArgumentTypeError),
        ({"client_cert": ()}, ArgumentTypeError),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, object], kind: type[Exception]):
    """What cannot be is refused when the configuration is made, and no password is shown."""
    with pytest.raises(kind) as caught:
        S3ClientConfig(**options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("is_given", [True, False])
def test_credentials_come_through_the_proxy(is_given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What botocore asks for credentials goes through the same proxy, with its password."""
    token = tmp_path / "token"
    token.write_text("token")
    for name, value in {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ENDPOINT_URL_STS": "http://sts.invalid",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    body = b"<ErrorResponse><Error><Code>ExpiredTokenException</Code><Message>x</Message></Error></ErrorResponse>"
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    refusal = head.encode() + body
    with ScriptedProxy(lambda sock, head: sock.sendall(refusal)) as proxy:
        url = f"http://user:secret@127.0.0.1:{proxy.port}"
        if not is_given:
            monkeypatch.setenv("HTTP_PROXY", url)
        config = S3ClientConfig(proxies={"http": url} if is_given else None)
        with pytest.raises((S3Error, ClientError)) as caught:  # what it comes to is not the matter here
            AwsSession(config, "us-east-1", None).credentials()
    assert proxy.heads[0].startswith(b"POST http://sts.invalid/")
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.heads[0]
    assert "secret" not in f"{caught.value}"

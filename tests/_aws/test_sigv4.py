"""Tests of signing: AWS's published examples, string by string, and botocore's signatures of odd requests."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import botocore.session
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch._aws import sigv4
from s3torch._aws.sigv4 import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Credentials,
    Signer,
    canonical_query,
    canonical_request,
    encode_path,
    signing_key,
    string_to_sign,
    timestamp,
)

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
CREDENTIALS = Credentials(ACCESS_KEY, SECRET_KEY)
REGION = "us-east-1"

# Thu, 23 May 2013, midnight to Friday.
EXAMPLE_TIME = 1369353600.0
WHEN = "20130524T000000Z"
SCOPE = "20130524/us-east-1/s3/aws4_request"
HOST = "examplebucket.s3.amazonaws.com"

# --- AWS's examples --------------------------------------------------------------------------------------------------
# https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "Examples: Signature calculations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One published example: a request, and each string on the way to its signature."""

    method: str
    key: str
    query: Mapping[str, str]
    fields: Mapping[str, str]
    body: bytes = b""
    canonical: str
    canonical_sha256: str
    signed_names: str
    signature: str


EXAMPLES = {
    "GET object": Example(
        method="GET",
        key="test.txt",
        query={},
        fields={"range": "bytes=0-9"},
        canonical=(
            "GET\n"
            "/test.txt\n"
            "\n"
            "host:examplebucket.s3.amazonaws.com\n"
            "range:bytes=0-9\n"
            "x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
            "x-amz-date:20130524T000000Z\n"
            "\n"
            "host;range;x-amz-content-sha256;x-amz-date\n"
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        ),
        canonical_sha256="7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972",
        signed_names="host;range;x-amz-content-sha256;x-amz-date",
        signature="f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "PUT object": Example(
        method="PUT",
        key="test$file.text",
        query={},
        fields={"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        body=b"Welcome to Amazon S3.",
        canonical=(
            "PUT\n"
            "/test%24file.text\n"
            "\n"
            "date:Fri, 24 May 2013 00:00:00 GMT\n"
            "host:examplebucket.s3.amazonaws.com\n"
            "x-amz-content-sha256:44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072\n"
            "x-amz-date:20130524T000000Z\n"
            "x-amz-storage-class:REDUCED_REDUNDANCY\n"
            "\n"
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class\n"
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
        ),
        canonical_sha256="9e0e90d9c76de8fa5b200d8c849cd5b8dc7a3be3951ddb7f6a76b4158342019d",
        signed_names="date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        signature="98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "GET bucket lifecycle": Example(
        method="GET",
        key="",
        query={"lifecycle": ""},
        fields={},
        canonical=(
            "GET\n"
            "/\n"
            "lifecycle=\n"
            "host:examplebucket.s3.amazonaws.com\n"
            "x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
            "x-amz-date:20130524T000000Z\n"
            "\n"
            "host;x-amz-content-sha256;x-amz-date\n"
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        ),
        canonical_sha256="9766c798316ff2757b517bc739a67f6213b4ab36dd5da2f94eaebf79c77395ca",
        signed_names="host;x-amz-content-sha256;x-amz-date",
        signature="fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "GET bucket (list objects)": Example(
        method="GET",
        key="",
        query={"prefix": "J", "max-keys": "2"},
        fields={},
        canonical=(
            "GET\n"
            "/\n"
            "max-keys=2&prefix=J\n"
            "host:examplebucket.s3.amazonaws.com\n"
            "x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
            "x-amz-date:20130524T000000Z\n"
            "\n"
            "host;x-amz-content-sha256;x-amz-date\n"
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        ),
        canonical_sha256="df57d21db20da04d7fa30298dd4488ba3a2b47ca3a489c74750e0f1e7df1b9b7",
        signed_names="host;x-amz-content-sha256;x-amz-date",
        signature="34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}


@pytest.mark.parametrize("published", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_published_examples(published: Example):
    """Canonical request, string to sign and signature are those that AWS published."""
    payload_sha256 = hashlib.sha256(published.body).hexdigest()
    fields = {
        "host": HOST,
        "x-amz-date": timestamp(EXAMPLE_TIME),
        "x-amz-content-sha256": payload_sha256,
        **published.fields,
    }
    path, query = f"/{encode_path(published.key)}", canonical_query(published.query)
    canonical = canonical_request(published.method, path, query, fields, payload_sha256)
    assert canonical == (published.canonical, published.signed_names)
    assert string_to_sign(canonical[0], WHEN, SCOPE) == (
        f"AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n{published.canonical_sha256}"
    )
    assert _authorization(
        published.method,
        path,
        query,
        fields,
        payload_sha256=payload_sha256,
        credentials=CREDENTIALS,
        region=REGION,
        when=WHEN,
    ) == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={published.signed_names},Signature={published.signature}"
    )


def _authorization(method: str, path: str, query: str, fields: Mapping[str, str], **arguments: Any) -> str:
    signer = Signer(fields, **arguments)
    return signer.preamble + signer.signature(method, path, query)


def test_signing_key_is_derived_for_a_day_and_a_region():
    """The key depends on secret, day and region."""
    key = signing_key(SECRET_KEY, "20130524", REGION)
    assert len(key) == 32
    others = [
        signing_key(SECRET_KEY + "x", "20130524", REGION),
        signing_key(SECRET_KEY, "20130525", REGION),
        signing_key(SECRET_KEY, "20130524", "eu-west-1"),
    ]
    assert len({key, *others}) == 4
    assert signing_key(SECRET_KEY, "20130524", REGION) == key


@given(secret=st.text(max_size=200), date=st.text(max_size=100))
@example(secret="s" * 60, date="d" * 64)
@example(secret="s" * 61, date="d" * 65)
def test_signing_key_is_an_hmac(secret: str, date: str):
    """Python's hmac derives the same key, from secrets longer than a block of the hash, too."""
    expected = f"AWS4{secret}".encode()
    for part in (date, REGION, "s3", "aws4_request"):
        expected = hmac.digest(expected, part.encode(), "sha256")
    assert signing_key(secret, date, REGION) == expected


def _signature(**changed: Any) -> str:
    arguments = {"payload_sha256": EMPTY_SHA256, "credentials": CREDENTIALS, "region": REGION, "when": WHEN, **changed}
    return _authorization("GET", "/k", "", {"host": "h", "x-amz-date": arguments["when"]}, **arguments)


def test_what_is_kept_between_signatures_is_kept_apart():
    """Signing in turn for several secrets, days and regions gives each its own signature, each time the same."""
    variants = [
        {},
        {"credentials": Credentials(ACCESS_KEY, "other")},
        {"when": "20130525T000000Z"},
        {"region": "eu-west-1"},
        {"when": "20130524T000001Z"},
    ]
    rounds = [[_signature(**variant) for variant in variants] for _ in range(3)]
    assert rounds[0] == rounds[1] == rounds[2]
    assert len(set(rounds[0])) == len(variants)


# --- The parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "19700101T000000Z"),
        (EXAMPLE_TIME, "20130524T000000Z"),
        (EXAMPLE_TIME + 0.999, "20130524T000000Z"),
        (EXAMPLE_TIME - 1, "20130523T235959Z"),
        (1709251199, "20240229T235959Z"),
        (4102444800, "21000101T000000Z"),
    ],
)
def test_timestamp(seconds: float, text: str):
    """A time is written in UTC, in whole seconds."""
    assert timestamp(seconds) == text


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("", ""),
        ("a/b", "a/b"),
        ("/a//b/", "/a//b/"),
        ("./../a", "./../a"),
        ("AZaz09-._~", "AZaz09-._~"),
        (" ", "%20"),
        ("+", "%2B"),
        ("%", "%25"),
        ("%20", "%2520"),
        ("'()*!", "%27%28%29%2A%21"),
        ("?#&=;,:@$[]", "%3F%23%26%3D%3B%2C%3A%40%24%5B%5D"),
        ('"<>\\^`{|}', "%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("\n\r\t\0\x7f", "%0A%0D%09%00%7F"),
        ("é", "%C3%A9"),
        ("日本", "%E6%97%A5%E6%9C%AC"),
        ("🦜", "%F0%9F%A6%9C"),
        ("e\u0301", "e%CC%81"),  # not composed to é
    ],
)
def test_encode_path(path: str, encoded: str):
    """All but unreserved characters and the slash is encoded, and no part of a path is normalised."""
    assert encode_path(path) == encoded


def test_a_lone_surrogate_cannot_be_encoded():
    """A key that is no Unicode text is refused, not sent as something else."""
    with pytest.raises(UnicodeEncodeError):
        encode_path("a\udc80")


@pytest.mark.parametrize(
    ("parameters", "query"),
    [
        ({}, ""),
        ({"a": ""}, "a="),
        ({"b": "2", "a": "1"}, "a=1&b=2"),
        ({"prefix": "a/b c+d~"}, "prefix=a%2Fb%20c%2Bd~"),
        ({"a b": "&=?#%"}, "a%20b=%26%3D%3F%23%25"),
        # Sorted by what is sent: % comes before letters, and capital letters before small ones.
        ({"a": "1", "é": "2", "B": "3"}, "%C3%A9=2&B=3&a=1"),
        ({"a-b": "1", "a": "2", "a.b": "3"}, "a=2&a-b=1&a.b=3"),
    ],
)
def test_canonical_query(parameters: dict[str, str], query: str):
    """A query is encoded, slashes too, and sorted."""
    assert canonical_query(parameters) == query


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_a_query_round_trips(parameters: dict[str, str]):
    """A query, as a server would take it apart, gives the parameters back."""
    assert dict(parse_qsl(canonical_query(parameters), keep_blank_values=True, strict_parsing=bool(parameters))) == (
        parameters
    )


def test_spaces_in_fields():
    """Spaces around a value do not count, and runs of them count as one."""
    spaced = canonical_request("GET", "/", "", {"b": "  x   y ", "a": "1"}, UNSIGNED_PAYLOAD)
    assert spaced == ("GET\n/\n\na:1\nb:x y\n\na;b\nUNSIGNED-PAYLOAD", "a;b")
    assert spaced == canonical_request("GET", "/", "", {"a": "1", "b": "x y"}, UNSIGNED_PAYLOAD)


def test_empty_sha256():
    """The constant is the digest of nothing."""
    assert hashlib.sha256().hexdigest() == EMPTY_SHA256


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{0!r}".format])
def test_secrets_do_not_show(show):
    """Neither the secret key nor the session token shows where credentials are printed."""
    shown = show(Credentials(ACCESS_KEY, "secret-1", "secret-2"))
    assert shown == f"Credentials(access_key='{ACCESS_KEY}')"


def test_credentials_are_a_value():
    """Credentials are frozen, equal to their like, and have no session token unless given one."""
    assert Credentials("a", "b") == Credentials("a", "b", None) != Credentials("a", "b", "c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        CREDENTIALS.secret_key = "x"


# --- Against botocore ------------------------------------------------------------------------------------------------

ODD_KEYS = [
    "a",
    "a b",
    " ",
    " a ",
    "a+b",
    "a%b",
    "a%20b",
    "%",
    "%zz",
    "/a",
    "//a//b//",
    "a//b",
    "/",
    "..",
    ".",
    "../a",
    "a/../b/./c/",
    "./",
    "a~b",
    "it's",
    "*",
    "a?b=c&d#e",
    "a;b,c:d@e=f",
    string.printable,
    *string.punctuation,
    "é",
    "e\u0301",
    "ключ/日本/🦜",
    "a\nb\r\n",
    "a\0b",
    "\x7f\x80\x85\xa0",
    "\u2028\ufeff\ufffd\U0010ffff",
    "k" * 1024,
]
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})")


def _parts(field: str) -> tuple[str, ...]:
    """Return credential, signed names and signature of an Authorization field."""
    match = _SIGNED.fullmatch(field)
    assert match is not None
    return match.groups()


class _EmptyListing:
    """What botocore reads an answer's body from."""

    def stream(self) -> list[bytes]:
        """Return the pieces of the body."""
        return [b"<ListBucketResult/>"]


class BotocoreClient:
    """A botocore client whose requests are kept instead of sent."""

    def __init__(self, session_token: str | None) -> None:
        self.credentials = Credentials(ACCESS_KEY, SECRET_KEY, session_token)
        self._client = botocore.session.Session().create_client(
            "s3",
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            aws_session_token=session_token,
            config=Config(signature_version="s3v4", request_checksum_calculation="when_required"),
        )
        self._client.meta.events.register("before-send.s3", self._keep)
        self._kept: AWSPreparedRequest | None = None

    def _keep(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        self._kept = request
        return AWSResponse(request.url, 200, {}, _EmptyListing())

    def request(self, method: str, **parameters: Any) -> AWSPreparedRequest:
        """Return what botocore would send."""
        self._kept = None
        getattr(self._client, method)(**parameters)
        assert self._kept is not None
        return self._kept

    def close(self) -> None:
        """Close the client."""
        self._client.close()


@pytest.fixture(scope="module", params=[None, "to+ken/=="], ids=["key", "key and token"])
def client(request) -> Iterator[BotocoreClient]:
    """A botocore client that knows nothing of this machine's AWS configuration."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        client = BotocoreClient(request.param)
        yield client
        client.close()


def _assert_signed_alike(request: AWSPreparedRequest, path: str, query: Mapping[str, str], by: Credentials) -> None:
    """Assert that we address and sign a request of botocore's as botocore did."""
    url = urlsplit(request.url)
    assert url.path == path
    sent = {}
    for name, value in request.headers.items():
        sent[name.lower()] = value.decode() if isinstance(value, bytes) else value
    theirs = _parts(sent.pop("authorization"))
    fields = {"host": url.netloc, **sent}
    ours = _authorization(
        request.method,
        path,
        canonical_query(query),
        {name: fields[name] for name in theirs[1].split(";")},
        payload_sha256=fields["x-amz-content-sha256"],
        credentials=by,
        region=REGION,
        when=fields["x-amz-date"],
    )
    assert _parts(ours) == theirs
    assert ("x-amz-security-token" in theirs[1]) == (by.session_token is not None)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_signed_like_botocore_does(client: BotocoreClient, key: str):
    """An odd key is encoded and signed as botocore does it, with a session token or without."""
    request = client.request("get_object", Bucket="examplebucket", Key=key, Range="bytes=0-9")
    _assert_signed_alike(request, f"/{encode_path(key)}", {}, client.credentials)


@given(key=st.text(min_size=1, max_size=30), version_id=st.none() | st.text(min_size=1, max_size=10))
def test_any_key_is_signed_like_botocore_does(client: BotocoreClient, key: str, version_id: str | None):
    """Any key, with a version or without, is encoded and signed as botocore does it."""
    query = {} if version_id is None else {"VersionId": version_id}
    request = client.request("get_object", Bucket="examplebucket", Key=key, **query)
    ours = {} if version_id is None else {"versionId": version_id}
    _assert_signed_alike(request, f"/{encode_path(key)}", ours, client.credentials)


@given(prefix=st.text(max_size=30), delimiter=st.text(min_size=1, max_size=3), token=st.text(min_size=1, max_size=30))
@example(prefix=string.printable, delimiter="/", token="1+/=%2B ~")
def test_any_query_is_signed_like_botocore_does(client: BotocoreClient, prefix: str, delimiter: str, token: str):
    """Any values of a listing's query are encoded and signed as botocore does it."""
    request = client.request(
        "list_objects_v2", Bucket="examplebucket", Prefix=prefix, Delimiter=delimiter, ContinuationToken=token
    )
    query = {
        "list-type": "2",
        "prefix": prefix,
        "delimiter": delimiter,
        "continuation-token": token,
        "encoding-type": "url",
    }
    assert dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True)) == query
    _assert_signed_alike(request, "/", query, client.credentials)


@pytest.mark.parametrize("body", [b"", b"Welcome to Amazon S3."])
def test_a_put_is_signed_like_botocore_does(client: BotocoreClient, body: bytes):
    """A body and more header fields are signed as botocore does it."""
    request = client.request(
        "put_object", Bucket="examplebucket", Key="a b", Body=body, StorageClass="STANDARD_IA", Metadata={"n": "x  y"}
    )
    _assert_signed_alike(request, "/a%20b", {}, client.credentials)


class RecordingAuth(S3SigV4Auth):
    """botocore's signer, which keeps the strings on the way."""

    def canonical_request(self, request: AWSRequest) -> str:
        """Keep the canonical request."""
        self.canonical = super().canonical_request(request)
        return self.canonical

    def string_to_sign(self, request: AWSRequest, canonical: str) -> str:
        """Keep the string to sign."""
        self.to_sign = super().string_to_sign(request, canonical)
        return self.to_sign


@given(
    key=st.text(max_size=30),
    query=st.dictionaries(st.text(min_size=1, max_size=10), st.text(max_size=10), max_size=4),
    region=st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1"]),
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20),
)
@example(key=string.printable, query={string.printable: string.printable}, region=REGION, value="  a   b ")
@example(key="//..//.//", query={"a": "", "A": "", "a b": "+", "é": "~"}, region=REGION, value="")
def test_every_string_on_the_way_is_botocores(key: str, query: dict[str, str], region: str, value: str):
    """Canonical request, string to sign and signature of any request are those of botocore's S3SigV4Auth."""
    path, query_string = f"/{encode_path(key)}", canonical_query(query)
    request = AWSRequest("GET", f"https://{HOST}{path}?{query_string}", headers={"x-amz-meta-n": value})
    auth = RecordingAuth(BotocoreCredentials(ACCESS_KEY, SECRET_KEY), "s3", region)
    auth.add_auth(request)
    when = request.context["timestamp"]
    fields = {
        "host": HOST,
        "x-amz-content-sha256": EMPTY_SHA256,
        "x-amz-date": when,
        "x-amz-meta-n": value,
    }
    canonical, signed_names = canonical_request("GET", path, query_string, fields, EMPTY_SHA256)
    assert canonical == auth.canonical
    assert string_to_sign(canonical, when, f"{when[:8]}/{region}/s3/aws4_request") == auth.to_sign
    ours = _authorization(
        "GET",
        path,
        query_string,
        fields,
        payload_sha256=EMPTY_SHA256,
        credentials=CREDENTIALS,
        region=region,
        when=when,
    )
    assert _parts(ours) == _parts(request.headers["Authorization"])
    assert _parts(ours)[1] == signed_names


def test_all_functions_are_covered():
    """Whatever sigv4 offers is used above."""
    assert [name for name in sigv4.__all__ if name not in globals()] == []

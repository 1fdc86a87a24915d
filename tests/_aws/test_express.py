"""Tests of directory buckets: their sessions, and that addresses and signatures are botocore's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3ExpressAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch._aws import sigv4
from s3torch._aws.bucket import Bucket
from s3torch._aws.endpoint import Scheme
from s3torch._aws.express import CreateSession, DirectoryBucket, Session, Sessions
from s3torch._aws.operations import HeadObject
from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials
from s3torch._transfer.http1 import Inbox
from s3torch.config import S3ClientConfig
from s3torch.errors import (
    CertificateError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
    ProtocolError,
    ProxyError,
    ProxyRefusedError,
    RegionError,
    S3Error,
)
from tests.support.oracle import new_session

NAMES = st.builds(
    "{}--{}-az{}--x-s3".format,
    st.from_regex(r"[a-z0-9][a-z0-9-]{1,30}[a-z0-9]", fullmatch=True),
    st.sampled_from(["usw2", "use1", "apne1", "eun1"]),
    st.integers(1, 9),
)
REGIONS = st.sampled_from(["us-west-2", "us-east-1", "ap-northeast-1", "eu-north-1"])
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    # requests' URLs, through which botocore signs, drop what these mean in paths
    lambda key: not key.startswith("/") and not {".", ".."} & set(key.split("/")) and "//" not in key
)
QUERIES = st.dictionaries(
    st.from_regex(r"[a-zA-Z-]{1,12}", fullmatch=True), st.text("ab c/&=?+~%é", max_size=8), max_size=3
)
KEYS_OF_A_SESSION = Credentials("SESSION", "secret of the session", "token of the session")


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Service:
    """Gives out sessions, and counts them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.given = 0
        self.within: list[float | None] = []
        self.error: Exception | None = None

    def __call__(self, within: float | None) -> Session:
        self.within.append(within)
        if self.error is not None:
            raise self.error
        self.given += 1
        return Session(Credentials(f"key{self.given}", "secret", "token"), self.clock(), self.clock() + 300)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret of the user")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token of the user")


def directory_bucket(name: str, region: str, send: Callable[..., None], config: S3ClientConfig | None = None) -> Bucket:
    session = AwsSession(config or S3ClientConfig(), region, None)
    plain = Bucket(name, lambda: session, "agent", clock=lambda: 1e9)
    assert plain.endpoint.scheme is Scheme.SESSION
    return DirectoryBucket(plain, send, Sessions())


def fields_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def answered(send_body: bytes, date: str = "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n") -> Callable[..., None]:
    """Return what gives an exchange this answer."""

    def send(exchange: CreateSession, within: float | None) -> None:
        del within
        exchange.request()
        inbox = Inbox()
        reading = exchange.response(inbox)
        head = f"HTTP/1.1 200 OK\r\n{date}Content-Length: {len(send_body)}\r\n\r\n".encode()
        answer = memoryview(head + send_body)
        want = next(reading)
        try:
            while True:
                count = min(len(want), len(answer))
                want[:count] = answer[:count]
                answer = answer[count:]
                want = reading.send(count)
        except StopIteration as stop:
            if stop.value is not None:
                raise stop.value from None

    return send


def document(expiration: str = "2026-01-01T00:05:00Z") -> bytes:
    return (
        "<CreateSessionResult><Credentials><AccessKeyId>SESSION</AccessKeyId>"
        "<SecretAccessKey>secret of the session</SecretAccessKey><SessionToken>token of the session</SessionToken>"
        f"<Expiration>{expiration}</Expiration></Credentials></CreateSessionResult>"
    ).encode()


@settings(max_examples=40, deadline=None)
@given(name=NAMES, region=REGIONS)
def test_addresses_are_botocores(name: str, region: str):
    """The address of a directory bucket, and what is signed for, are those of the request that botocore would send."""
    seen: list[str] = []
    client = new_session().create_client(
        "s3",
        region_name=region,
        aws_access_key_id="a",
        aws_secret_access_key="s",
        config=Config(s3={"disable_s3_express_session_auth": True}),
    )

    def note(request, **_: object) -> None:
        seen.extend([request.url, request.headers["Authorization"].decode()])
        raise ConnectionError  # nothing is sent

    client.meta.events.register("before-send.s3", note)
    with pytest.raises(ConnectionError):
        client.get_object(Bucket=name, Key="key")
    bucket = directory_bucket(name, region, lambda *_: None)
    where = bucket.endpoint
    assert seen[0] == f"{where.origin.scheme}://{where.host}{where.base_path}/key"
    assert f"/{where.region or bucket.region}/{where.service}/aws4_request" in seen[1]
    assert where.is_directory


@settings(max_examples=200, deadline=None)
@given(name=NAMES, region=REGIONS, key=KEYS, query=QUERIES, method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE"]))
def test_signatures_are_botocores(name: str, region: str, key: str, query: dict[str, str], method: str):
    """A request has the signature, and the fields of the session, that botocore's signer gives it."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "user")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "secret of the user")
        patched.setenv("AWS_SESSION_TOKEN", "token of the user")
        bucket = directory_bucket(name, region, answered(document()))
        head = bucket.request_head(method, key, query, {}, {"x-amz-checksum-mode": "ENABLED"})
    ours = fields_of(head)
    target = head.decode("latin-1").split(" ")[1]
    request = AWSRequest(
        method=method,
        url=f"https://{ours['host']}{target}",
        headers={"x-amz-checksum-mode": "ENABLED", "X-Amz-Content-SHA256": sigv4.EMPTY_SHA256},
    )
    request.context["timestamp"] = ours["x-amz-date"]
    signer = S3ExpressAuth(
        TheirCredentials("SESSION", "secret of the session", "token of the session"),
        "s3express",
        region,
        identity_cache=None,
    )
    signer._modify_request_before_signing(request)
    request.headers.replace_header("X-Amz-Date", ours["x-amz-date"]) if "X-Amz-Date" in request.headers else None
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    names = signer.signed_headers(signer.headers_to_sign(request))
    assert f"SignedHeaders={names},Signature={signature}" in ours["authorization"]
    assert ours["x-amz-s3session-token"] == request.headers["x-amz-s3session-token"] == "token of the session"
    assert "x-amz-security-token" not in ours
    assert f"Credential=SESSION/20010909/{region}/s3express/aws4_request" in ours["authorization"]


@pytest.mark.usefixtures("user")
def test_sessions_are_asked_for_by_the_user():
    """CreateSession and copies are signed with the user's keys, for the same service."""
    heads: list[bytes] = []

    def send(exchange: CreateSession, within: float | None) -> None:
        del within
        heads.append(bytes(exchange.request()[0]))
        raise ConnectionFailedError("No answer.")

    bucket = directory_bucket("b--usw2-az1--x-s3", "us-west-2", send)
    with pytest.raises(ConnectionFailedError):
        bucket.request_head("GET", "key", {}, {})
    fields = fields_of(heads[0])
    assert heads[0].startswith(b"GET /?session= HTTP/1.1\r\n")
    assert "Credential=user/20010909/us-west-2/s3express/aws4_request" in fields["authorization"]
    assert fields["x-amz-security-token"] == "token of the user"
    assert "Credential=user/" in bucket.plain.request_head("PUT", "key", {}, {}).decode()


def test_without_credentials_there_is_no_session():
    """A public directory bucket is read without a signature."""
    bucket = directory_bucket("b--usw2-az1--x-s3", "us-west-2", lambda *_: 1 / 0, S3ClientConfig(unsigned=True))
    assert b"uthorization" not in bucket.request_head("GET", "key", {}, {})


def test_sessions_can_be_switched_off(monkeypatch: pytest.MonkeyPatch):
    """Botocore's setting is heeded: then the user's keys sign everything, still for a directory bucket."""
    monkeypatch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")
    endpoint = AwsSession(S3ClientConfig(), "us-west-2", None).endpoint("b--usw2-az1--x-s3", "us-west-2")
    assert (endpoint.scheme, endpoint.is_directory) == (Scheme.SIGV4, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no XML where <CreateSessionResult> is due"),
        (b"<html>Log in</html>", "by a page of HTML"),
        (document("tomorrow"), "holds no session"),
        (document("2026-01-01T00:00:00Z"), "has expired"),
        (document().replace(b"<SessionToken>token of the session</SessionToken>", b""), "holds no session"),
    ],
)
@pytest.mark.usefixtures("user")
def test_answers_that_are_no_session(body: bytes, words: str):
    """An answer without a good session is refused, and no key of it is shown."""
    bucket = directory_bucket("b--usw2-az1--x-s3", "us-west-2", answered(body))
    with pytest.raises(ProtocolError, match=words) as caught:
        bucket.request_head("GET", "key", {}, {})
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("user")
def test_a_refused_session_is_replaced():
    """That a session has expired leads to another session, and leaves the user's credentials alone."""
    bucket = directory_bucket("b--usw2-az1--x-s3", "us-west-2", answered(document()))
    bucket.request_head("GET", "key", {}, {})
    assert bucket.access_key == "SESSION"
    session, before = bucket._session(), bucket._session().credentials()
    source = session._source
    assert bucket.correct(CredentialsError("expired", code="ExpiredToken"), {}, bucket.corrections)
    assert session._source is source
    assert session.credentials() == before
    bucket._send = answered(document().replace(b">SESSION<", b">NEXT<"))
    bucket.request_head("GET", "key", {}, {})
    assert bucket.access_key == "NEXT"


@pytest.mark.usefixtures("user")
def test_a_session_is_asked_for_where_its_requests_go():
    """After a correction of the region the session is of the other region, too: a place has one of its own."""
    asked: list[tuple[str, str]] = []

    def send(exchange: CreateSession, within: float | None) -> None:
        asked.append((exchange._bucket.endpoint.origin.host, exchange._bucket.region))
        answered(document())(exchange, within)

    bucket = directory_bucket("b--usw2-az1--x-s3", "us-west-2", send)
    before = bucket.place
    bucket.request_head("GET", "key", {}, {})
    assert bucket.correct(RegionError("There.", region="us-east-1"), {}, 0)
    assert fields_of(bucket.request_head("GET", "key", {}, {}))["host"] == bucket.endpoint.host
    bucket.request_head("GET", "key", {}, {}, place=before)
    hosts = [f"b--usw2-az1--x-s3.s3express-usw2-az1.{region}.amazonaws.com" for region in ("us-west-2", "us-east-1")]
    assert asked == [*zip(hosts, ("us-west-2", "us-east-1"), strict=True)]
    assert bucket.plain.endpoint == bucket.endpoint


def test_one_session_until_it_is_due():
    """A session serves until the moment of this process in the last fifth of its life."""
    clock = Clock()
    sessions, create = Sessions(clock, lambda: 0.0), Service(clock)
    for _ in range(240):
        assert sessions.credentials("bucket", create).access_key == "key1"
        clock.now += 1
    assert sessions.credentials("bucket", create).access_key == "key2"
    assert create.within == [None, 5.0]
    assert sessions.credentials("another", create).access_key == "key3"


def test_moments_are_spread():
    """Processes replace their sessions at different moments, all of them before the end."""
    moments = []
    for draw in (0.0, 0.5, 0.999999):
        clock = Clock()
        sessions, create = Sessions(clock, lambda draw=draw: draw), Service(clock)
        while create.given < 2:
            sessions.credentials("bucket", create)
            clock.now += 1
        moments.append(clock.now - 1001)
    assert moments == [240, 263, 285]


def test_a_failed_replacement_is_no_failure():
    """While the old session is good, one that cannot be had is no failure; it is asked for again after a while."""
    clock = Clock()
    sessions, create = Sessions(clock, lambda: 0.0), Service(clock)
    sessions.credentials("bucket", create)
    create.error = ConnectionFailedError("No answer.")
    clock.now += 290
    for _ in range(3):
        assert sessions.credentials("bucket", create).access_key == "key1"
    assert len(create.within) == 2
    clock.now += 5
    assert sessions.credentials("bucket", create).access_key == "key1"
    assert len(create.within) == 3
    clock.now += 5
    with pytest.raises(ConnectionFailedError):
        sessions.credentials("bucket", create)


def test_a_failure_is_shared():
    """Who waits for a session, or wants one at once, shares the failure instead of asking as often again."""
    clock = Clock()
    sessions, create = Sessions(clock, lambda: 0.0), Service(clock)
    create.error = ConnectionFailedError("No answer.", bucket="b")
    errors = []
    for _ in range(5):
        with pytest.raises(ConnectionFailedError, match="No answer") as caught:
            sessions.credentials("bucket", create)
        errors.append(caught.value)
    assert len(create.within) == 1
    assert len(set(map(id, errors))) == 5
    clock.now += 1
    create.error = None
    assert sessions.credentials("bucket", create).access_key == "key1"


@pytest.mark.parametrize("kind", [DeadlineError, CertificateError, ProxyError, ProxyRefusedError])
def test_what_is_of_the_asker_is_not_shared(kind: type[S3Error]):
    """That one client has a deadline, or a proxy that refuses, is no failure of another one."""
    clock = Clock()
    sessions, create = Sessions(clock, lambda: 0.0), Service(clock)
    create.error = kind("Mine.")
    with pytest.raises(kind, match="Mine"):
        sessions.credentials("bucket", create)
    create.error = None
    assert sessions.credentials("bucket", create).access_key.startswith("key")


def test_others_go_on_while_one_replaces():
    """While one thread replaces a session that is still good, others do not wait for it."""
    clock = Clock()
    sessions, create = Sessions(clock, lambda: 0.0), Service(clock)
    sessions.credentials("bucket", create)
    clock.now += 250
    others: list[str] = []

    def slow(within: float | None) -> Session:
        thread = threading.Thread(
            target=lambda: others.append(sessions.credentials("bucket", lambda _: 1 / 0).access_key)
        )
        thread.start()
        thread.join()
        return create(within)

    assert sessions.credentials("bucket", slow).access_key == "key2"
    assert others == ["key1"]


def test_a_signal_handler_does_not_wait_for_what_it_interrupts():
    """Whoever comes in the middle of the thread that asks gets a session of its own."""
    clock = Clock()
    sessions, create = Sessions(clock), Service(clock)
    inner: list[str] = []

    def interrupted(within: float | None) -> Session:
        inner.append(sessions.credentials("bucket", create).access_key)
        return create(within)

    assert sessions.credentials("bucket", interrupted).access_key == "key2"
    assert inner == ["key1"]


def test_only_the_refused_session_is_forgotten():
    """A late refusal of an old session leaves the new one alone."""
    clock = Clock()
    sessions, create = Sessions(clock), Service(clock)
    sessions.credentials("bucket", create)
    sessions.forget("bucket", "key1")
    assert sessions.credentials("bucket", create).access_key == "key2"
    sessions.forget("bucket", "key1")
    sessions.forget("nobody's", "key1")
    assert sessions.credentials("bucket", create).access_key == "key2"


def test_rotated_keys_leave_nothing():
    """Sessions of access keys that were rotated are dropped when they have ended."""
    clock = Clock()
    sessions, create = Sessions(clock), Service(clock)
    for number in range(5):
        sessions.credentials(("bucket", number), create)
        clock.now += 200
    assert len(sessions._records) == 2


def test_another_region_is_said():
    """Where a directory bucket cannot be reached the error asks for the region: no answer can correct it."""
    config = S3ClientConfig(unsigned=True)
    session = AwsSession(config, "us-east-1", None)
    request = HeadObject(Bucket("b--usw2-az1--x-s3", lambda: session, "agent"), "key")
    error = request.explain(ConnectionFailedError("The host does not exist."))
    assert "'us-east-1' was tried: is the zone in its name of that region?" in str(error)
    usual = HeadObject(Bucket("b", lambda: session, "agent"), "key")
    assert "zone" not in str(usual.explain(ConnectionFailedError("The host does not exist.")))


def test_a_child_goes_on():
    """A child has its parent's session, no lock that a thread of the parent held, and a moment of its own."""
    clock, draws = Clock(), iter([0.0, 0.9])
    sessions, create = Sessions(clock, lambda: next(draws)), Service(clock)
    sessions.credentials("bucket", create)
    held = threading.Thread(target=sessions._records["bucket"].lock.acquire)
    held.start()
    held.join()
    sessions.go_on_in_child()
    clock.now += 250
    assert sessions.credentials("bucket", create).access_key == "key1"
    clock.now += 50
    assert sessions.credentials("bucket", create).access_key == "key2"


def test_the_services_clock_tells_the_end():
    """How long a session is good is the difference of two times of the service, whatever the clock here says."""
    request = CreateSession(Bucket("b", lambda: AwsSession(S3ClientConfig(unsigned=True), "us-east-1", None), "agent"))
    answered(document())(request, None)
    assert request.session.ends - request.session.began == 300
    assert urlsplit("https://x/").path == "/"

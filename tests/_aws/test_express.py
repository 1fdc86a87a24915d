"""Tests of directory buckets: their sessions, and that addresses and signatures are botocore's."""

from __future__ import annotations

import contextlib
import sys
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

from s3torch._aws import express, sigv4
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
    ThrottledError,
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
    """Gives out sessions, and counts them. It is asked by one client, whose settings these are."""

    def __init__(self, clock: Clock, settings: object = None) -> None:
        self.clock = clock
        self.settings = settings
        self.given = 0
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.left: float | None = None
        self.lasts = True
        self.middle: Callable[[], object] = lambda: None  # what happens while the service is asked
        self.under_way: list[Callable[[Session], None]] = []

    def ask(self) -> Session:
        self.asked.append("waited")
        self.middle()
        if self.error is not None:
            raise self.error
        return self.give()

    def begin(self, take: Callable[[Session], None]) -> bool:
        if not self.lasts:
            return False
        self.asked.append("begun")
        self.under_way.append(take)
        return True

    def time_left(self) -> float | None:
        return self.left

    def give(self) -> Session:
        self.given += 1
        return Session(Credentials(f"key{self.given}", "secret", "token"), self.clock(), self.clock() + 300)

    def answer(self) -> None:
        """Answer what nobody waits for."""
        for take in self.under_way:
            take(self.give())
        self.under_way.clear()


class Sender:
    """Sends by a function."""

    settings = None

    def __init__(self, send: Callable[[CreateSession], None]) -> None:
        self.send = send

    def begin(self, exchange: CreateSession) -> bool:
        self.send(exchange)
        return True

    @staticmethod
    def time_left() -> float | None:
        return None


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret of the user")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token of the user")


def directory_bucket(name: str, region: str, send: Callable[..., None], config: S3ClientConfig | None = None) -> Bucket:
    session = AwsSession(config or S3ClientConfig(), region, None)
    plain = Bucket(name, lambda: session, "agent", clock=lambda: 1e9)
    assert plain.endpoint.scheme is Scheme.SESSION
    return DirectoryBucket(plain, Sender(send), Sessions())


def fields_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def answered(send_body: bytes, date: str = "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n") -> Callable[..., None]:
    """Return what gives an exchange this answer."""

    def send(exchange: CreateSession) -> None:
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

    def send(exchange: CreateSession) -> None:
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
        (document(""), "holds no session"),
        (document().replace(b"<SessionToken>token of the session</SessionToken>", b""), "holds no session"),
        (document().replace(b"token of the session", b"token\nof the session"), "cannot be sent"),
        (document().replace(b">SESSION<", ">SITZUNG-Ü<".encode()), "cannot be sent"),
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
    bucket._sender.send = answered(document().replace(b">SESSION<", b">NEXT<"))
    bucket.request_head("GET", "key", {}, {})
    assert bucket.access_key == "NEXT"


@pytest.mark.usefixtures("user")
def test_a_session_is_asked_for_where_its_requests_go():
    """After a correction of the region the session is of the other region, too: a place has one of its own."""
    asked: list[tuple[str, str]] = []

    def send(exchange: CreateSession) -> None:
        asked.append((exchange._bucket.endpoint.origin.host, exchange._bucket.region))
        answered(document())(exchange)

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
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock)
    for _ in range(240):
        assert sessions.credentials("bucket", service).access_key == "key1"
        clock.now += 1
    assert sessions.credentials("bucket", service).access_key == "key1"
    service.answer()
    assert sessions.credentials("bucket", service).access_key == "key2"
    assert service.asked == ["waited", "begun"]
    assert sessions.credentials("another", service).access_key == "key3"


def test_moments_are_spread():
    """Processes replace their sessions at different moments, all of them before the end."""
    moments = []
    for draw in (0.0, 0.5, 0.999999):
        clock = Clock()
        sessions, service = Sessions(clock, lambda draw=draw: draw), Service(clock)
        while not service.under_way:
            sessions.credentials("bucket", service)
            clock.now += 1
        moments.append(clock.now - 1001)
    assert moments == [240, 263, 285]


def test_a_failed_replacement_is_no_failure():
    """While the old session is good, one that does not come is no failure; it is asked for again after a while."""
    clock = Clock()
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock)
    sessions.credentials("bucket", service)
    service.error = ConnectionFailedError("No answer.")
    clock.now += 290
    for _ in range(3):
        assert sessions.credentials("bucket", service).access_key == "key1"
    assert service.asked == ["waited", "begun"]
    clock.now += 5
    assert sessions.credentials("bucket", service).access_key == "key1"
    assert service.asked == ["waited", "begun", "begun"]
    clock.now += 5
    with pytest.raises(ConnectionFailedError):
        sessions.credentials("bucket", service)


def test_who_cannot_replace_leaves_it_to_others():
    """A thread that ends with its call does not begin to replace a session, and keeps nobody from it."""
    clock = Clock()
    sessions, service, brief = Sessions(clock, lambda: 0.0), Service(clock), Service(clock)
    sessions.credentials("bucket", service)
    clock.now += 250
    brief.lasts = False
    assert sessions.credentials("bucket", brief).access_key == "key1"
    assert sessions.credentials("bucket", service).access_key == "key1"
    assert (brief.asked, service.asked) == ([], ["waited", "begun"])


def test_an_answer_that_is_late():
    """A session that was asked for earlier, and comes later, does not take the place of one that lasts longer."""
    clock = Clock()
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock)
    sessions.credentials("bucket", service)
    clock.now += 250
    sessions.credentials("bucket", service)
    late = service.give()
    clock.now += 10
    service.answer()
    newest = sessions.credentials("bucket", service).access_key
    sessions._records["bucket"].take(late)
    assert sessions.credentials("bucket", service).access_key == newest == "key3"


def test_a_failure_is_shared():
    """Who waits for a session, or wants one at once, shares the failure instead of asking as often again."""
    clock = Clock()
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock)
    service.error = ConnectionFailedError("No answer.", bucket="b")
    errors = []
    for _ in range(5):
        with pytest.raises(ConnectionFailedError, match="No answer") as caught:
            sessions.credentials("bucket", service)
        errors.append(caught.value)
    assert service.asked == ["waited"]
    assert len(set(map(id, errors))) == 5
    clock.now += 1
    service.error = None
    assert sessions.credentials("bucket", service).access_key == "key1"


def test_a_deadline_is_not_shared():
    """That the time of one call is over is no failure of another call."""
    clock = Clock()
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock)
    service.error = DeadlineError("Mine.")
    with pytest.raises(DeadlineError, match="Mine"):
        sessions.credentials("bucket", service)
    service.error = None
    assert sessions.credentials("bucket", service).access_key == "key1"


@pytest.mark.parametrize("kind", [DeadlineError, CertificateError, ProxyError, ProxyRefusedError, ThrottledError])
def test_what_is_of_the_asker_is_not_shared(kind: type[S3Error]):
    """That one client gives up, or has a proxy that refuses, is no failure of one that has other settings."""
    clock = Clock()
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock, S3ClientConfig(max_attempts=1))
    service.error = kind("Mine.", attempts=1)
    with pytest.raises(kind, match="Mine"):
        sessions.credentials("bucket", service)
    with pytest.raises(kind, match="Mine"):
        sessions.credentials("bucket", Service(clock, S3ClientConfig(max_attempts=1)))
    assert sessions.credentials("bucket", Service(clock, S3ClientConfig())).access_key == "key1"


def test_others_go_on_while_one_replaces():
    """While a session that is still good is replaced, nobody waits for that, and nobody else asks."""
    clock = Clock()
    sessions, service = Sessions(clock, lambda: 0.0), Service(clock)
    sessions.credentials("bucket", service)
    clock.now += 250
    assert sessions.credentials("bucket", service).access_key == "key1"
    others: list[str] = []
    thread = threading.Thread(target=lambda: others.append(sessions.credentials("bucket", Service(clock)).access_key))
    thread.start()
    thread.join()
    assert others == ["key1"]
    assert service.asked == ["waited", "begun"]
    service.answer()
    assert sessions.credentials("bucket", service).access_key == "key2"


def test_others_wait_for_as_long_as_they_may():
    """A thread that waits for the one that asks raises its own error when its own time is up."""
    clock = Clock()
    sessions, service, hasty = Sessions(clock, lambda: 0.0), Service(clock), Service(clock)
    hasty.left = 0.01
    caught: list[BaseException] = []

    def want() -> None:
        try:
            sessions.credentials("bucket", hasty)
        except DeadlineError as error:
            caught.append(error)

    def be_slow() -> None:
        thread = threading.Thread(target=want)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()

    service.middle = be_slow
    assert sessions.credentials("bucket", service).access_key == "key1"
    assert [type(error) for error in caught] == [DeadlineError]
    assert not hasty.asked


def test_a_signal_handler_does_not_wait_for_what_it_interrupts():
    """Whoever comes in the middle of the thread that asks gets a session of its own."""
    clock = Clock()
    sessions, service = Sessions(clock), Service(clock)
    inner: list[str] = []

    def interrupt() -> None:
        service.middle = lambda: None
        inner.append(sessions.credentials("bucket", service).access_key)

    service.middle = interrupt
    assert sessions.credentials("bucket", service).access_key == "key2"
    assert inner == ["key1"]
    assert sessions._records["bucket"].asking is None


def test_only_the_refused_session_is_forgotten():
    """A late refusal of an old session leaves the new one alone."""
    clock = Clock()
    sessions, service = Sessions(clock), Service(clock)
    sessions.credentials("bucket", service)
    sessions.forget("bucket", "key1")
    assert sessions.credentials("bucket", service).access_key == "key2"
    sessions.forget("bucket", "key1")
    sessions.forget("nobody's", "key1")
    assert sessions.credentials("bucket", service).access_key == "key2"


def test_rotated_keys_leave_nothing():
    """Sessions of access keys that were rotated are dropped when they have ended."""
    clock = Clock()
    sessions, service = Sessions(clock), Service(clock)
    for number in range(5):
        sessions.credentials(("bucket", number), service)
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
    sessions, service = Sessions(clock, lambda: next(draws)), Service(clock)
    sessions.credentials("bucket", service)
    record = sessions._records["bucket"]
    held = threading.Thread(target=lambda: record.changed.acquire() and record.begin_asking(None))
    held.start()
    held.join()
    sessions.go_on_in_child()
    clock.now += 250
    assert sessions.credentials("bucket", service).access_key == "key1"
    clock.now += 50
    assert sessions.credentials("bucket", service).access_key == "key2"


@pytest.mark.parametrize(
    "expiration",
    [
        "2026-01-01T00:05:00Z",
        "2026-01-01T00:05:00.0Z",
        "2026-01-01T00:05:00.12Z",
        "2026-01-01T00:05:00.123456789Z",
        "2026-01-01T00:05:00.1234+00:00",
        "2026-01-01T02:05:00+0200",
        "2026-01-01T00:05:00",
    ],
)
def test_the_services_clock_tells_the_end(expiration: str):
    """How long a session is good is the difference of two times of the service, whatever the clock and Python here."""
    request = CreateSession(Bucket("b", lambda: AwsSession(S3ClientConfig(unsigned=True), "us-east-1", None), "agent"))
    answered(document(expiration))(request)
    assert request.session.ends - request.session.began == 300
    assert urlsplit("https://x/").path == "/"


def test_ctrl_c_leaves_no_lock_locked():
    """An interrupt just behind a lock does not keep other threads from asking."""
    record = express._Record(0.8)

    def trace(frame, _event, _argument):
        is_lock = (frame.f_code.co_filename, frame.f_code.co_name) == (threading.__file__, "__enter__")
        return interrupt if is_lock else None

    def interrupt(_frame, event, _argument):
        if event == "return":
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt

    with contextlib.suppress(KeyboardInterrupt):
        sys.settrace(trace)
        try:
            record.end_asking()
        finally:
            sys.settrace(None)
    other = threading.Thread(target=record.end_asking, daemon=True)
    other.start()
    other.join(10)
    assert not other.is_alive()

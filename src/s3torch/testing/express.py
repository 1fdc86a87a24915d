"""ExpressServer: a directory bucket of S3 Express One Zone in memory, on loopback.

What a general purpose bucket does not have is checked as S3 documents it: sessions and their expiry, signatures for the
service ``s3express``, listings in no order and by folders alone, ETags that are no MD5s, RenameObject, and appending.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-express-differences.html.
"""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import formatdate
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from s3torch._aws.sigv4 import Credentials, Signer
from s3torch.config import S3ClientConfig
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.objects import (
    Answer,
    Objects,
    document_answer,
    error_answer,
    operation_of,
    page_size_of,
    query_of,
)
from s3torch.testing.faulty.wire import Request, Wire
from s3torch.testing.local import environment_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ExpressObjects", "ExpressServer", "IssuedSession"]

_BUCKET = "bucket--usw2-az1--x-s3"
_REGION = "us-west-2"
_SERVICE = "s3express"
# Seconds that S3's sessions are good for.
_LIFETIME = 300.0
_RENAMED = Answer(status=200, fields={"x-amz-request-id": "REQUEST"})
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/([0-9]{8})/([^/]+)/([^/]+)/aws4_request, *"
    r"SignedHeaders=([^,]+), *Signature=([0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class IssuedSession:
    """A session that was given out.

    Attributes:
        credentials: Its keys and its token.
        ends: When it expires, in seconds since the epoch.
        connection: The number of the connection that it was asked for on.
    """

    credentials: Credentials
    ends: float
    connection: int


class ExpressObjects(Objects):
    """The objects of a directory bucket.

    Args:
        bucket: Its name.
        contents: What is in it at first.
        credentials: Of the user, who may ask for sessions.
        region: That is signed for.
        lifetime: Seconds that a session is good for.
        seed: Chooses the order of listings, which each of them has anew, and the ETags.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        bucket: str,
        contents: Mapping[str, bytes] | None,
        credentials: Credentials,
        region: str,
        *,
        lifetime: float = _LIFETIME,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._random = random.Random(seed)
        self._user = credentials
        self._region = region
        self._lifetime = lifetime
        self._time = clock
        self._orders: list[list[str]] = []
        self._renamed: dict[str, tuple[str, str]] = {}
        self.sessions: list[IssuedSession] = []
        super().__init__(bucket, contents)

    def expire_sessions(self) -> None:
        """Ends all sessions, whatever they were promised."""
        with self._lock:
            self.sessions = [IssuedSession(session.credentials, 0.0, session.connection) for session in self.sessions]

    def answer(self, request: Request) -> Answer:
        """Does what a request asks for, if it is signed as it must be."""
        if unquote(request.path).split("/")[1] != self.bucket:
            return error_answer(404, "NoSuchBucket")
        with self._lock:
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            query, operation = query_of(request), operation_of(request)
            if request.method == "GET" and "session" in query:
                return self._issue(request)
            if "renameObject" in query:
                return self._rename(request)
            if operation in {"ListObjectsV2", "ListMultipartUploads"}:
                refusal = _refused_listing(query)
            if operation == "CompleteMultipartUpload":
                refusal = _refused_parts(request)
            if operation == "PutObject" and "x-amz-write-offset-bytes" in request.headers:
                return self._append(request)
            return refusal or super().answer(request)

    def _refusal(self, request: Request) -> Answer | None:
        """Returns what is wrong with a request's signature; None if nothing is."""
        # Only these are signed with the user's own keys; botocore's model of S3 says so.
        is_plain = "session" in query_of(request) or "x-amz-copy-source" in request.headers
        token = request.headers.get("x-amz-s3session-token")
        if is_plain:
            return _wrong_signature(request, self._user, self._region) if token is None else _invalid("a session token")
        if "x-amz-security-token" in request.headers:
            return _invalid("x-amz-security-token")
        session = next((each for each in self.sessions if each.credentials.session_token == token), None)
        if session is None:
            return error_answer(403, "AccessDenied" if token is None else "InvalidToken")
        if session.ends <= self._time():
            return error_answer(400, "ExpiredToken")
        return _wrong_signature(request, session.credentials, self._region)

    def _issue(self, request: Request) -> Answer:
        number = len(self.sessions)
        credentials = Credentials(f"SESSION{number}", secrets.token_hex(20), f"token-{number}-{secrets.token_hex(600)}")
        ends = self._time() + self._lifetime
        self.sessions.append(IssuedSession(credentials, ends, request.connection))
        expiration = datetime.fromtimestamp(ends, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = document_answer(
            '<CreateSessionResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Credentials>'
            f"<SessionToken>{credentials.session_token}</SessionToken>"
            f"<SecretAccessKey>{credentials.secret_key}</SecretAccessKey>"
            f"<AccessKeyId>{credentials.access_key}</AccessKeyId><Expiration>{expiration}</Expiration>"
            "</Credentials></CreateSessionResult>"
        )
        return Answer(
            status=200, fields={**answer.fields, "Date": formatdate(self._time(), usegmt=True)}, body=answer.body
        )

    def _rename(self, request: Request) -> Answer:
        source, target = unquote(request.headers.get("x-amz-rename-source", "")), self.key_of(request)
        token = request.headers.get("x-amz-client-token", "")
        if token in self._renamed:
            return _RENAMED if self._renamed[token] == (source, target) else _invalid("the client token")
        if source not in self._stored:
            return error_answer(404, "NoSuchKey")
        if self._is_refused(request, target):
            return error_answer(412, "PreconditionFailed")
        self._stored[target], self._checksums[target] = self._stored.pop(source), self._checksums.pop(source)
        self._layouts.pop(target, None)
        if source in self._layouts:
            self._layouts[target] = self._layouts.pop(source)
        self._renamed[token] = source, target
        return _RENAMED

    def _append(self, request: Request) -> Answer:
        key = self.key_of(request)
        content = self._stored[key][0] if key in self._stored else b""
        if int(request.headers["x-amz-write-offset-bytes"]) != len(content):
            return error_answer(400, "InvalidWriteOffset")
        self[key] = content + request.body
        size = str(len(content) + len(request.body))
        return Answer(status=200, fields={"ETag": self._stored[key][1], "x-amz-object-size": size})

    def _page(self, query: Mapping[str, str]) -> Answer:
        token = query.get("continuation-token")
        if token is None:
            names = self._names(query)
            self._random.shuffle(names)
            self._orders.append(names)
            number, start = len(self._orders) - 1, 0
        else:
            number, start = map(int, token.split("."))
        names, stop = self._orders[number], start + page_size_of(query)
        return self._page_of(names[start:stop], f"{number}.{stop}" if stop < len(names) else None, query)

    def _etag_of(self, parts: Sequence[bytes], *, is_upload: bool = False) -> str:
        del parts, is_upload  # it looks like an MD5, and is none
        return f'"{self._random.randbytes(16).hex()}"'


def _refused_listing(query: Mapping[str, str]) -> Answer | None:
    if query.get("prefix", "") and not query["prefix"].endswith("/"):
        return _invalid("a prefix that does not end in /")
    if query.get("delimiter", "/") != "/":
        return _invalid("another delimiter than /")
    unknown = {"start-after", "upload-id-marker"} & query.keys()
    return error_answer(501, "NotImplemented") if unknown else None


def _refused_parts(request: Request) -> Answer | None:
    numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", request.body)]
    return None if numbers == list(range(1, len(numbers) + 1)) else error_answer(400, "InvalidPartOrder")


def _invalid(what: str) -> Answer:
    del what  # for whoever reads the code that calls
    return error_answer(400, "InvalidRequest")


def _wrong_signature(request: Request, credentials: Credentials, region: str) -> Answer | None:
    """Returns the refusal of a signature that is not by these keys for this service and region."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return error_answer(403, "AccessDenied")
    access_key, date, signed_region, service, names, signature = found.groups()
    if access_key != credentials.access_key:
        return error_answer(403, "InvalidAccessKeyId")
    when = request.headers.get("x-amz-date", "")
    if (signed_region, service, date) != (region, _SERVICE, when[:8]):
        return error_answer(400, "AuthorizationHeaderMalformed")
    fields = {name: request.headers.get(name, "") for name in names.split(";")}
    unsigned = {name for name in request.headers if name.startswith("x-amz-")} - fields.keys()
    signer = Signer(
        fields,
        payload_sha256=request.headers.get("x-amz-content-sha256", ""),
        credentials=credentials,
        region=region,
        when=when,
        service=service,
    )
    parts = urlsplit(request.target)
    is_right = signer.signature(request.method, parts.path, parts.query) == signature
    return None if is_right and not unsigned and "host" in fields else error_answer(403, "SignatureDoesNotMatch")


class ExpressServer:
    """A directory bucket of S3 Express One Zone in memory, on loopback.

    ```python
    with ExpressServer({"train/0": b"content"}) as server, server.activated():
        client = S3Client(s3client_config=server.config)
        assert client.read_range(server.bucket, "train/0", 0) == b"content"
        assert len(server.sessions) == 1
    ```

    Each connection has a thread of this process. On exit all of them are joined and all sockets are closed.

    Args:
        objects: The bucket's first objects, by key.
        bucket: Its name, which ends in ``--x-s3``.
        lifetime: Seconds that a session is good for.
        seed: Chooses the order of listings, which each of them has anew, and the ETags.

    Attributes:
        objects: The bucket, as a mapping from keys to contents; `objects.uploads` are those left open.
        bucket: Its name.
    """

    def __init__(
        self,
        objects: Mapping[str, bytes] | None = None,
        *,
        bucket: str = _BUCKET,
        lifetime: float = _LIFETIME,
        seed: int = 0,
    ) -> None:
        self.bucket = bucket
        self._user = Credentials("EXPRESS", secrets.token_hex(20))
        self.objects = ExpressObjects(bucket, objects, self._user, _REGION, lifetime=lifetime, seed=seed)
        self._server = ScriptedServer(self._handle)

    def __repr__(self) -> str:
        return f"ExpressServer({self.endpoint!r}, bucket={self.bucket!r}, sessions={len(self.sessions)})"

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.__exit__(exc_type, exc, traceback)

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return self._server.endpoint

    @property
    def config(self) -> S3ClientConfig:
        """For a client of a test: small parts, and little patience."""
        return S3ClientConfig(part_size=5 * 1024 * 1024, connect_timeout=2.0, first_byte_timeout=5.0)

    @property
    def environment(self) -> dict[str, str]:
        """The variables to put in `os.environ`."""
        return {
            "AWS_ACCESS_KEY_ID": self._user.access_key,
            "AWS_SECRET_ACCESS_KEY": self._user.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextlib.contextmanager
    def activated(self) -> Iterator[None]:
        """Makes this the server that AWS clients find; see `LocalS3.activated`."""
        with environment_of(self.environment):
            yield

    @property
    def sessions(self) -> list[IssuedSession]:
        """The sessions that were given out, in order."""
        return list(self.objects.sessions)

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order in which they arrived."""
        return self._server.requests

    def expire_sessions(self) -> None:
        """Ends all sessions now, whatever they were promised."""
        self.objects.expire_sessions()

    def _handle(self, request: Request, wire: Wire) -> None:
        answer = self.objects.answer(request)
        wire.respond(answer.status, answer.fields, answer.body)

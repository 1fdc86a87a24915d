"""Directory buckets (S3 Express One Zone), which want a session's keys, and the requests that only they know.

Theory of operation. CreateSession hands out keys that are valid for five minutes. All requests about objects are signed
with them, for the service ``s3express``, and carry the session's token. Copies are signed with the user's own
credentials, as CreateSession is (``Bucket.plain``). Which request is which, and where it goes, are botocore's rules.

A session belongs to the process (``PROCESS_SESSIONS``): one for each bucket, address and access key. Signing asks for
it, so it is made in the middle of a turn, on another engine of the same thread. Threads that come meanwhile wait for
the one that is at it, each for as long as its own call may take. A failure is that of all who have the same settings:
whoever has others may have more patience, another proxy or other authorities, and asks itself.

In the last fifth of its life, at a moment that each process draws for itself, a session is replaced: one thread sends
the request beside those that it is about to send, and nobody waits for the answer. All go on with the old keys until it
is there; if it fails, until they expire. A forked child begins with its parent's session and draws a moment of its own,
so that a hundred workers do not ask at the same time.

The service's clock tells the expiry, and the answer's Date how much time is left; ours only measures that. A machine
that was asleep may find its session expired; the answer that says so is corrected by a new one.

It is one file of over 450 lines: sessions, and the few requests that need them, are one subject.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateSession.html, API_RenameObject.html, and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/directory-buckets-objects-append.html.
"""

from __future__ import annotations

import copy
import html
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from s3torch._aws.answers import has_marks, parse_http_date
from s3torch._aws.bucket import Bucket, Place
from s3torch._aws.checksums import Checksum
from s3torch._aws.listing import seconds_of
from s3torch._aws.operations import Operation
from s3torch._aws.proof import Shows
from s3torch._aws.sending import PutObject
from s3torch._aws.sigv4 import Credentials
from s3torch._transfer.exchange import Exchange
from s3torch._transfer.http1 import Head
from s3torch.errors import DeadlineError, ProtocolError, S3Error

__all__ = [
    "PROCESS_SESSIONS",
    "AppendObject",
    "Asker",
    "CreateSession",
    "DirectoryBucket",
    "RenameObject",
    "Sender",
    "Session",
    "Sessions",
]

_MAX_DOCUMENT = 64 * 1024
# Parts of a session's life after which it is replaced: each process draws a moment between the two. Not tuned.
_REPLACED_FROM, _REPLACED_UNTIL = 0.8, 0.95
# Seconds after which a session that is still good is asked for again, if no answer has replaced it. Not tuned.
_PAUSE = 5.0
# Seconds for which a failure is that of all who want the session, and have the same settings. Not tuned.
_SHARED_FOR = 1.0


@dataclass(frozen=True, slots=True)
class Session:
    """Keys for some minutes. Times are in seconds of a monotonic clock.

    Attributes:
        credentials: The keys, and the session's token.
        began: When they were asked for.
        ends: When they expire.
    """

    credentials: Credentials
    began: float
    ends: float


class Asker(Protocol):
    """Whoever wants a session: one client, at one place.

    Attributes:
        settings: Of the client: whoever has the same gets the same failure.
    """

    @property
    def settings(self) -> object: ...

    def ask(self) -> Session:
        """Ask the service for a session, and wait for it."""

    def begin(self, take: Callable[[Session], None]) -> bool:
        """Ask the service for a session, and do not wait: ``take`` is called if it comes.

        Returns:
            Whether it may come.
        """

    def time_left(self) -> float | None:
        """Return for how many seconds a session can be waited for; None for as long as it takes."""


class Sender(Protocol):
    """What a bucket sends its own requests by, in the middle of a turn.

    Attributes:
        settings: As of an ``Asker``.
    """

    @property
    def settings(self) -> object: ...

    def send(self, exchange: Exchange) -> None:
        """Send a request and wait for it, as long as that turn may go on."""

    def begin(self, exchange: Exchange) -> bool:
        """Send a request beside those of that turn; returns whether it is under way."""

    def time_left(self) -> float | None:
        """Return for how many seconds that turn may go on; None for as long as it takes."""


class _Record:
    """What is known of one bucket's session."""

    def __init__(self, share: float) -> None:
        self.make_locks()
        self.session: Session | None = None
        self.share = share
        self.not_before = 0.0
        self.failures: dict[object, tuple[S3Error, float]] = {}  # by settings: the error, and until when it is shared

    def make_locks(self) -> None:
        """Make the locks: at first, and anew in a child, where a thread of its parent may have held them."""
        self._lock = threading.RLock()  # signal handlers come in the middle of whoever holds it
        self.changed = threading.Condition(self._lock)  # locked by the lock: Ctrl-C in its own method leaves it locked
        self.asking: int | None = None  # the thread that is asking for a session

    def begin_asking(self, left: float | None) -> bool:
        """Wait until no other thread is asking; returns whether the caller may ask, after ``left`` seconds at most."""
        me = threading.get_ident()
        with self._lock:
            may = self.changed.wait_for(lambda: self.asking in (None, me), left)
            self.asking = me if may else self.asking
        return may

    def end_asking(self) -> None:
        """Let another thread ask, if it was the caller that did."""
        with self._lock:
            if self.asking == threading.get_ident():
                self.asking = None
                self.changed.notify_all()

    def begin_replacing(self, session: Session, now: float) -> bool:
        """Whether the caller is to replace a session: one of all threads, now and then, while it is good but due."""
        if not self.is_due(session, now):
            return False
        with self._lock:
            is_mine = self.session is session and self.is_due(session, now)
            if is_mine:
                self.not_before = now + _PAUSE
        return is_mine

    def is_due(self, session: Session, now: float) -> bool:
        """Whether a session that is still good is to be replaced."""
        return now >= max(session.began + self.share * (session.ends - session.began), self.not_before)

    def take(self, session: Session) -> None:
        """Go on with a session, if it lasts longer than the one that is there."""
        if self.session is None or session.ends > self.session.ends:
            self.session = session


class Sessions:
    """The sessions of a process, for all of its threads and clients.

    Args:
        clock: Monotonic, in seconds.
        draw: Returns a number in [0, 1): when a session is replaced.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._draw = draw
        self._records: dict[object, _Record] = {}

    def credentials(self, key: object, asker: Asker) -> Credentials:
        """Return the keys to sign with now.

        Args:
            key: Names the session: equal for all who may share it.
            asker: Who wants it.

        Raises:
            DeadlineError: Another thread was asking for as long as the asker could wait.
            S3Error: There is none, and it was not given.
        """
        record = self._records.get(key)
        if record is None:
            self._drop_ended()
            record = self._records.setdefault(key, _Record(self._new_share()))
        session, now = record.session, self._clock()
        if session is not None and now < session.ends:
            if record.begin_replacing(session, now) and not asker.begin(record.take):
                record.not_before = now  # another thread may
            return session.credentials
        is_inner = record.asking == threading.get_ident()  # in a signal handler, in the middle of asking
        try:
            try:
                if not record.begin_asking(asker.time_left()):
                    raise DeadlineError("Another thread is asking for the session of a directory bucket; time is up.")
                session = record.session
                if session is None or self._clock() >= session.ends:
                    record.session = session = self._created(record, asker)
                return session.credentials
            finally:
                if not is_inner:
                    record.end_asking()
        finally:
            if not is_inner:
                record.end_asking()  # again: an interrupt may have come just before the one above

    def forget(self, key: object, access_key: str | None) -> None:
        """Forget a session that was refused, unless there is a newer one.

        Args:
            key: Names the session.
            access_key: Of the keys that were refused.
        """
        record = self._records.get(key)
        session = record.session if record is not None else None
        if record is not None and session is not None and session.credentials.access_key == access_key:
            record.session = None

    def forget_all(self) -> None:
        """Forget everything, as a test wants it that begins."""
        self._records.clear()

    def go_on_in_child(self) -> None:
        """Make what a fork has copied this process's own: a lock may have been held, and its moment is the parent's."""
        for record in self._records.values():
            record.make_locks()
            record.failures = {}
            record.share = self._new_share()

    def _drop_ended(self) -> None:
        """Drop the records of sessions that nobody wants any more: of access keys that were rotated."""
        now = self._clock()
        for key, record in list(self._records.items()):
            if record.session is not None and record.session.ends <= now:
                self._records.pop(key, None)

    def _created(self, record: _Record, asker: Asker) -> Session:
        """Ask for a session; who has waited meanwhile, or comes at once, shares the failure instead of asking again."""
        failure, until = record.failures.get(asker.settings, (None, 0.0))
        if failure is not None and self._clock() < until:
            raise copy.copy(failure)
        try:
            session = asker.ask()
        except S3Error as error:
            if not isinstance(error, DeadlineError) or error.attempts:  # else the time of one call is over
                record.failures[asker.settings] = copy.copy(error), self._clock() + _SHARED_FOR
            raise
        record.failures = {}
        return session

    def _new_share(self) -> float:
        return _REPLACED_FROM + (_REPLACED_UNTIL - _REPLACED_FROM) * self._draw()


# ``random`` itself is often seeded alike in all processes of a job; the system's randomness is not.
PROCESS_SESSIONS = Sessions(draw=random.SystemRandom().random)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS_SESSIONS.go_on_in_child)


class DirectoryBucket(Bucket):
    """A directory bucket: its requests are signed with the keys of a session.

    Args:
        plain: The same bucket as the user's credentials sign for it.
        sender: Sends the requests for sessions.
        sessions: Where the session is kept.
    """

    _session_field = "x-amz-s3session-token"

    def __init__(self, plain: Bucket, sender: Sender, sessions: Sessions = PROCESS_SESSIONS) -> None:
        self.__dict__.update(plain.__dict__)
        self._plain = plain
        self._sender = sender
        self._sessions = sessions

    @property
    def plain(self) -> Bucket:
        """What signs with the user's credentials."""
        return self._plain

    def _credentials(self, place: Place) -> Credentials | None:
        own = super()._credentials(place)
        if own is None:
            return None
        asker = _PlaceAsker(self._plain, place, self._sender)
        return self._sessions.credentials(self._session_key(place, own.access_key), asker)

    def _forget_credentials(self, place: Place) -> None:
        own = super()._credentials(place)
        if own is not None:
            self._sessions.forget(self._session_key(place, own.access_key), self.access_key)

    def _session_key(self, place: Place, access_key: str) -> object:
        return self.name, place.endpoint.origin, place.endpoint.base_path, access_key


class _PlaceAsker:
    """Asks for the session of a bucket where the requests go that it signs."""

    def __init__(self, plain: Bucket, place: Place, sender: Sender) -> None:
        self._plain = plain
        self._place = place
        self._sender = sender
        self.settings = sender.settings
        self.time_left = sender.time_left

    def ask(self) -> Session:
        """Send CreateSession, and wait for the answer."""
        request = self._request(None)
        self._sender.send(request)
        return request.session

    def begin(self, take: Callable[[Session], None]) -> bool:
        """Send CreateSession."""
        return self._sender.begin(self._request(take))

    def _request(self, take: Callable[[Session], None] | None) -> CreateSession:
        plain, place = self._plain, self._place
        if plain.endpoint != place.endpoint:
            plain.place = place._replace(corrections=plain.corrections + 1)
        return CreateSession(plain, take)


class CreateSession(Operation):
    """CreateSession.

    Args:
        bucket: As the user's credentials sign for it.
        take_session: Is called with the session; None calls nothing.

    Attributes:
        session: What was answered, once the exchange has succeeded.
    """

    # It changes nothing, but is not sent a second time where it is late: that would be two sessions.
    shows = Shows(root="CreateSessionResult")
    most = _MAX_DOCUMENT
    session: Session

    def __init__(self, bucket: Bucket, take_session: Callable[[Session], None] | None = None) -> None:
        super().__init__("CreateSession", "GET", bucket, None, query={"session": ""})
        self._asked = 0.0
        self._take_session = take_session

    def request(self) -> Sequence[memoryview]:
        """Return the signed head."""
        self._asked = time.monotonic()
        return super().request()

    def take(self, head: Head, body: bytes) -> S3Error | None:
        """Remember the keys, and show nothing of them."""
        access_key, secret_key, token = (
            _text(body, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")
        )
        left = _seconds_left(_text(body, "Expiration"), head.fields.get("date", ""))
        if not (access_key and secret_key and token) or left is None:
            return ProtocolError("The answer holds no session: its keys, its token or its expiration are missing.")
        if left <= 0:
            return ProtocolError("The answer holds a session that has expired.")
        keys = access_key + secret_key + token
        if not (keys.isascii() and keys.isprintable()):  # it would be kept, and no request could be sent with it
            return ProtocolError("The answer holds a session whose keys or token cannot be sent.")
        self.session = Session(Credentials(access_key, secret_key, token), self._asked, self._asked + left)
        if self._take_session is not None:
            self._take_session(self.session)
        return None


def _text(body: bytes, name: str) -> str:
    """Return the text of an element, which may be longer than those of errors."""
    match = re.search(rf"<{name}>([^<]*)</{name}>", body.decode("utf-8", "replace"))
    return html.unescape(match[1]).strip() if match else ""


def _seconds_left(expiration: str, date: str) -> float | None:
    """Return for how long a session is good by the service's clock; None if it does not say."""
    if not expiration:
        return None
    try:
        ends = seconds_of(expiration)
    except ValueError:
        return None
    now = parse_http_date(date)
    return ends - (time.time() if now is None else now)


class RenameObject(Operation):
    """RenameObject: gives an object of a directory bucket another key, without moving its bytes.

    A request that is sent again has the same token, so the service knows it for the same. The answer has no body. What
    tells it from that of something else is its status, 200, and a field of S3's: each of its answers has an
    ``x-amz-request-id`` (https://docs.aws.amazon.com/AmazonS3/latest/API/RESTCommonResponseHeaders.html).

    Args:
        bucket: Of the object.
        source: Its key.
        target: The key that it gets.
        if_none_match: Whether to refuse to replace an object that is there already.
    """

    def __init__(self, bucket: Bucket, source: str, target: str, *, if_none_match: bool = False) -> None:
        fields = {"x-amz-client-token": uuid.uuid4().hex, "x-amz-rename-source": quote(source, safe="/")}
        super().__init__("RenameObject", "PUT", bucket, target, query={"renameObject": ""}, signed_fields=fields)
        self._fields["content-length"] = "0"
        if if_none_match:
            self._fields["if-none-match"] = "*"

    def doubt(self, head: Head) -> str:
        """Return why the head cannot be that of S3's answer; empty if it can."""
        if head.status != 200:
            return f"with status {head.status}"
        return super().doubt(head) or ("" if has_marks(head.fields) else "without x-amz-request-id")


class AppendObject(PutObject):
    """PutObject at the end of an object of a directory bucket.

    Args:
        bucket: Of the object.
        key: Of the object.
        body: In one or several pieces, none of them empty; must not change until the exchange is done.
        crc32: Of the body; None sends none.
        offset: Where the body begins: the object's size, in bytes.
    """

    def __init__(
        self, bucket: Bucket, key: str, body: Sequence[memoryview], crc32: Checksum | None, *, offset: int
    ) -> None:
        fields = {"x-amz-write-offset-bytes": str(offset)}
        super().__init__(bucket, key, body, crc32, signed_fields=fields)

"""What can go wrong between a client and S3, each as a small named value.

A fault stands for one request (`Fault`) or for one new connection (`ConnectionFault`). All are made by functions, whose
arguments have defaults. Bytes are counted in the body, times are seconds; where a position is left open, the server's
seed chooses it.

Some are no faults but rare and legal (`chunked`, `until_close`, `connection_close`, `close_idle`, `trickle`, `late`,
`interim`, `conflict`):
a client must read them right.

It is one file of over 450 lines: each fault is a few of them, and who looks for one looks here.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate

from s3torch.testing.faulty.exchange import Exchange
from s3torch.testing.faulty.objects import OPERATIONS, Answer, checksum_fields, s3_error
from s3torch.testing.faulty.wire import Wire

__all__ = [
    "ConnectionFault",
    "Fault",
    "another_page",
    "answer_lost",
    "chunked",
    "clock_skew",
    "close_before_head",
    "close_idle",
    "conflict",
    "connection_close",
    "corrupt",
    "corrupt_upload",
    "deleted",
    "emptied",
    "empty_as_206",
    "endless_head",
    "error_with_200",
    "etag_as",
    "expired_certificate",
    "expired_token",
    "garbage_head",
    "handshake_failure",
    "ignore_condition",
    "ignore_range",
    "interim",
    "late",
    "many_fields",
    "none",
    "on",
    "other_document",
    "other_range",
    "other_version",
    "page_for_people",
    "range_as_200",
    "refuse",
    "replaced",
    "reset_after",
    "reset_after_head",
    "reset_before_head",
    "reset_mid_body",
    "silent_success",
    "stall",
    "stall_before_head",
    "status",
    "trickle",
    "truncate",
    "until_close",
    "without_fields",
    "wrong_content_range",
    "wrong_count",
    "wrong_host",
    "wrong_length",
    "wrong_region",
]

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_PATIENCE = 2.0  # seconds, with a client that connects and says nothing
# A fatal alert of TLS 1.2 (RFC 8446, section 6): record type 21, level 2, handshake_failure.
_HANDSHAKE_FAILURE = bytes([21, 3, 3, 0, 2, 2, 40])


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done with one request, instead of answering it or beside that.

    Args:
        name: What it is.
        act: Does it. Where it neither sends nor closes anything, the client waits.
        operations: Of the S3 API (`GetObject`), or methods (`GET`), that it is for; empty means all.
    """

    name: str
    act: Callable[[Exchange], None] = field(repr=False)
    operations: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ConnectionFault:
    """What a new connection is met with.

    Args:
        name: What it is.
        certificate: The kind of certificate that is shown: `good`, `wrong_host` or `expired`.
        act: Is given the socket before TLS, and closes it; None goes on with that certificate.
    """

    name: str
    certificate: str = "good"
    act: Callable[[socket.socket], None] | None = field(default=None, repr=False)


def on(*operations: str, fault: Fault) -> Fault:
    """Returns a fault that is for some requests only; a script waits for such a one.

    Args:
        operations: Names of the S3 API (`GetObject`), or methods (`GET`).
        fault: The fault.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = set(operations) - OPERATIONS - _METHODS
    if unknown or not operations:
        known = ", ".join(sorted(OPERATIONS | _METHODS))
        raise ValueError(f"operations must be some of {known}; they are {sorted(operations)}")
    return replace(fault, operations=frozenset(operations))


def none() -> Fault:
    """Nothing: the request is answered well."""
    return Fault("none", Exchange.send)


# Connections that break


def refuse(seconds: float = 0.1) -> Fault:
    """The connection is closed without an answer, and new ones are refused for some seconds."""

    def act(exchange: Exchange) -> None:
        exchange.wire.close()
        exchange.refuse(seconds)

    return Fault("refuse", act)


def close_before_head() -> Fault:
    """The connection is closed in place of an answer; the request is not carried out."""
    return Fault("close_before_head", lambda exchange: exchange.wire.close())


def reset_before_head() -> Fault:
    """The connection is reset in place of an answer; the request is not carried out."""
    return Fault("reset_before_head", lambda exchange: exchange.wire.reset())


def reset_after_head() -> Fault:
    """The connection is reset behind the head of the answer."""
    return _cut("reset_after_head", 0, Wire.reset)


def reset_after(count: int) -> Fault:
    """The connection is reset after some bytes of the body, of which the last may be lost with it."""
    return _cut("reset_after", count, Wire.reset)


def reset_mid_body() -> Fault:
    """The connection is reset somewhere in the body."""
    return _cut("reset_mid_body", None, Wire.reset)


def truncate(count: int | None = None) -> Fault:
    """The connection is closed in the body, of which the head tells the full length.

    Args:
        count: Bytes of the body that come; None means some.
    """
    return _cut("truncate", count, Wire.close)


def answer_lost() -> Fault:
    """The request is carried out, and the connection is closed in place of the answer."""

    def act(exchange: Exchange) -> None:
        _ = exchange.answer
        exchange.wire.close()

    return Fault("answer_lost", act)


def close_idle() -> Fault:
    """The answer is right, and the connection closed behind it without having said so."""

    def act(exchange: Exchange) -> None:
        exchange.send()
        exchange.wire.close()

    return Fault("close_idle", act)


# Answers that do not come, or slowly


def late(seconds: float = 0.1) -> Fault:
    """The right answer begins some seconds late."""

    def act(exchange: Exchange) -> None:
        exchange.pause(seconds)
        exchange.send()

    return Fault("late", act)


def stall_before_head() -> Fault:
    """No answer comes, until the client leaves; the request is not carried out."""
    return Fault("stall_before_head", lambda exchange: exchange.wire.stall())


def stall(seconds: float | None = None) -> Fault:
    """The body stops halfway.

    Args:
        seconds: It goes on after so many; None means that it does not until the client leaves.
    """

    def act(exchange: Exchange) -> None:
        head, body = exchange.encoded()
        half = len(body) // 2
        exchange.wire.send(head + body[:half])
        if seconds is None:
            exchange.wire.stall()
        else:
            exchange.pause(seconds)
            exchange.wire.send(body[half:])

    return Fault("stall", act)


def trickle(pause: float = 0.001) -> Fault:
    """The right answer comes byte by byte.

    Args:
        pause: Seconds after each byte; 0 means none.
    """

    def act(exchange: Exchange) -> None:
        for octet in b"".join(exchange.encoded()):
            exchange.wire.send(bytes([octet]))
            if pause:
                exchange.pause(pause)

    return Fault("trickle", act)


# Answers that are wrong


def wrong_length(by: int = 1) -> Fault:
    """The head tells a length that is not the body's; the connection stays open.

    Args:
        by: Bytes to add to it; negative tells too little.
    """

    def act(exchange: Exchange) -> None:
        length = max(0, len(exchange.answer.body) + by)
        exchange.send(_altered(exchange.answer, {"Content-Length": str(length)}))

    return Fault("wrong_length", act)


def wrong_content_range(by: int = 1) -> Fault:
    """The head tells another range than the body has; an answer without a range is right.

    Args:
        by: Bytes to add to both ends.
    """

    def act(exchange: Exchange) -> None:
        told = _content_range(exchange.answer)
        if told is None:
            return exchange.send()
        start, last, total = told
        return exchange.send(_altered(exchange.answer, {"Content-Range": f"bytes {start + by}-{last + by}/{total}"}))

    return Fault("wrong_content_range", act)


def other_range() -> Fault:
    """Another range than was asked for is answered, and the head says so; an answer without a range is right."""

    def act(exchange: Exchange) -> None:
        told = _content_range(exchange.answer)
        content = exchange.objects.get(exchange.key, b"")
        if told is None or len(content) < 2:
            return exchange.send()
        start, last, total = told
        start, last = (start - 1, last - 1) if start else (start + 1, max(last, 1))
        fields = {"Content-Range": f"bytes {start}-{last}/{total}"}
        return exchange.send(replace(_altered(exchange.answer, fields), body=content[start : last + 1]))

    return Fault("other_range", act)


def ignore_range() -> Fault:
    """The whole object is answered with 200 to a request for a range."""

    def act(exchange: Exchange) -> None:
        headers = {name: value for name, value in exchange.request.headers.items() if name != "range"}
        exchange.send(exchange.objects.answer(replace(exchange.request, headers=headers)))

    return Fault("ignore_range", act, frozenset({"GET", "HEAD"}))


def other_version() -> Fault:
    """What is answered is of another version of the object, and has its ETag."""

    def act(exchange: Exchange) -> None:
        body = bytes(octet ^ 0xFF for octet in exchange.answer.body)
        fields = {"ETag": '"another"'}
        if "x-amz-checksum-type" in exchange.answer.fields:
            fields |= checksum_fields(body)
        exchange.send(replace(_altered(exchange.answer, fields), body=body))

    return Fault("other_version", act, frozenset({"GetObject"}))


def corrupt(index: int | None = None) -> Fault:
    """A byte of the body is another one.

    Args:
        index: Its position in the body; None means one of them.
    """

    def act(exchange: Exchange) -> None:
        body = _with_a_flipped_bit(exchange, exchange.answer.body, index)
        exchange.send(replace(exchange.answer, body=body))

    return Fault("corrupt", act)


def corrupt_upload(index: int | None = None) -> Fault:
    """A byte of what is uploaded is another one when it arrives.

    Args:
        index: Its position in the body; None means one of them.
    """

    def act(exchange: Exchange) -> None:
        body = _with_a_flipped_bit(exchange, exchange.request.body, index)
        exchange.send(exchange.objects.answer(replace(exchange.request, body=body)))

    return Fault("corrupt_upload", act, frozenset({"PutObject", "UploadPart"}))


def garbage_head() -> Fault:
    """What comes is no HTTP."""

    def act(exchange: Exchange) -> None:
        exchange.wire.send(b"SSH-2.0-OpenSSH_9.7\r\n\r\n")
        exchange.wire.close()

    return Fault("garbage_head", act)


def endless_head() -> Fault:
    """Header fields come until the client leaves."""

    def act(exchange: Exchange) -> None:
        exchange.wire.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            exchange.wire.send(b"X-Filler: x\r\n" * 1000)

    return Fault("endless_head", act)


def many_fields(count: int = 10_000) -> Fault:
    """The right answer has that many header fields more."""

    def act(exchange: Exchange) -> None:
        exchange.send(_altered(exchange.answer, {f"X-Filler-{number}": "x" for number in range(count)}))

    return Fault("many_fields", act)


# Answers that are legal, and rare


def chunked(size: int = 1000) -> Fault:
    """The right answer, its body in chunks of some bytes."""

    def act(exchange: Exchange) -> None:
        _, body = exchange.encoded()
        if not body:
            return exchange.send()
        fields = {"Content-Length": None, "Transfer-Encoding": "chunked"}
        head, _ = exchange.encoded(_altered(exchange.answer, fields))
        pieces = [body[left : left + size] for left in range(0, len(body), size)]
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        return exchange.wire.send(b"".join([head, *chunks, b"0\r\n\r\n"]))

    return Fault("chunked", act)


def interim(*numbers: int) -> Fault:
    """Answers that are none yet come before the right one.

    Args:
        numbers: Their statuses, 100 to 199; none means 100 and 103.
    """
    heads = b"".join(b"HTTP/1.1 %d Wait\r\nLink: </style.css>\r\n\r\n" % number for number in numbers or (100, 103))

    def act(exchange: Exchange) -> None:
        exchange.wire.send(heads + b"".join(exchange.encoded()))

    return Fault("interim", act)


def until_close() -> Fault:
    """The right answer, whose body ends where the connection is closed."""

    def act(exchange: Exchange) -> None:
        exchange.send(_altered(exchange.answer, {"Content-Length": None, "Connection": "close"}))
        exchange.wire.close()

    return Fault("until_close", act, frozenset({"GET", "PUT", "POST"}))


def connection_close() -> Fault:
    """The right answer, which says that the connection ends behind it."""

    def act(exchange: Exchange) -> None:
        exchange.send(_altered(exchange.answer, {"Connection": "close"}))
        exchange.wire.close()

    return Fault("connection_close", act)


# Answers of something else than S3


def page_for_people(
    content: bytes = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>",
    number: int = 200,
    content_type: str = "text/html; charset=utf-8",
) -> Fault:
    """The request is not carried out, and answered by a page that is not S3's, as by a captive portal.

    Args:
        content: The page.
        number: The HTTP status: 404 is that of a router without a backend, or of another web server.
        content_type: Of the page.
    """
    answer = Answer(status=number, fields={"Content-Type": content_type}, body=content)
    return Fault("page_for_people", lambda exchange: exchange.send(answer))


def silent_success(number: int = 200) -> Fault:
    """The request is not carried out, and answered by a status of success alone.

    So answers a server that takes the key for the name of a bucket, and the request for one that makes it.

    Args:
        number: The HTTP status, such as 204, or 206 without a range.
    """
    answer = Answer(status=number, fields={"x-amz-request-id": "REQUEST"})
    return Fault("silent_success", lambda exchange: exchange.send(answer))


def other_document(root: str = "ListAllMyBucketsResult") -> Fault:
    """The request is not carried out, and answered by a document of S3's for another one.

    Args:
        root: The document's root element.
    """
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}><IsTruncated>false</IsTruncated></{root}>'.encode()
    answer = Answer(status=200, fields={"Content-Type": "application/xml", "x-amz-request-id": "REQUEST"}, body=body)
    return Fault("other_document", lambda exchange: exchange.send(answer))


def error_with_200(code: str = "InternalError") -> Fault:
    """The request is not carried out, and S3 says so after it has answered 200 already.

    Args:
        code: S3's error code.
    """
    answer = Answer(
        status=200, fields={"Content-Type": "application/xml", "x-amz-request-id": "REQUEST"}, body=s3_error(code)
    )
    return Fault("error_with_200", lambda exchange: exchange.send(answer))


# Answers that other servers than Amazon S3 give


def range_as_200() -> Fault:
    """The range that was asked for is answered with status 200, beside its Content-Range."""

    def act(exchange: Exchange) -> None:
        is_range = exchange.answer.status == 206
        exchange.send(replace(exchange.answer, status=200) if is_range else None)

    return Fault("range_as_200", act, frozenset({"GetObject"}))


def empty_as_206(told: str | None = "bytes 0-0/0") -> Fault:
    """A range of an empty object is answered with status 206; of any other object rightly.

    Args:
        told: The Content-Range; None leaves it out.
    """

    def act(exchange: Exchange) -> None:
        if exchange.answer.status != 416 or exchange.objects.get(exchange.key) != b"":
            return exchange.send()
        fields = {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"', "x-amz-request-id": "REQUEST", "Content-Range": told}
        return exchange.send(Answer(status=206, fields=fields))

    return Fault("empty_as_206", act, frozenset({"GetObject"}))


def without_fields(*names: str) -> Fault:
    """The right answer, without some of its header fields.

    Args:
        names: Of the fields, as ``ETag``, ``Last-Modified``, ``Content-Length`` (to HEAD alone).
    """
    dropped = dict.fromkeys(names)

    def act(exchange: Exchange) -> None:
        exchange.send(_altered(exchange.answer, dropped))

    return Fault(f"without_fields {' '.join(names)}", act)


def etag_as(form: str = "{}") -> Fault:
    """The right answer, its ETag written in another way.

    Args:
        form: What is written, with ``{}`` for the ETag without quotes: ``W/"{}"`` makes it weak.
    """

    def act(exchange: Exchange) -> None:
        etag = exchange.answer.fields.get("ETag")
        exchange.send(_altered(exchange.answer, {} if etag is None else {"ETag": form.format(etag.strip('"'))}))

    return Fault("etag_as", act)


def another_page(name: str | None = "again", *, is_empty: bool = False) -> Fault:
    """A page of a listing that names another one, whether there is more or not.

    Args:
        name: Its token; None is one that was not there before.
        is_empty: Whether the page has no objects.
    """

    def act(exchange: Exchange) -> None:
        token = f"{exchange.random.getrandbits(64):x}" if name is None else name
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>".encode()
        body = re.sub(
            rb"<IsTruncated>.*?</IsTruncated>|<NextContinuationToken>.*?</NextContinuationToken>",
            b"",
            exchange.answer.body,
        )
        if is_empty:
            body = re.sub(rb"<Contents>.*</Contents>", b"", body)
        exchange.send(
            replace(exchange.answer, body=body.replace(b"</ListBucketResult>", more + b"</ListBucketResult>"))
        )

    return Fault("another_page", act, frozenset({"ListObjectsV2"}))


def wrong_count(by: int = 1) -> Fault:
    """A page of a listing says that it has another number of entries than it has.

    Args:
        by: Entries to add to its KeyCount; negative tells too little, as servers do that do not count prefixes.
    """

    def act(exchange: Exchange) -> None:
        def told(match: re.Match[bytes]) -> bytes:
            return b"<KeyCount>%d</KeyCount>" % max(0, int(match[1]) + by)

        body = re.sub(rb"<KeyCount>(\d+)</KeyCount>", told, exchange.answer.body)
        exchange.send(replace(exchange.answer, body=body))

    return Fault("wrong_count", act, frozenset({"ListObjectsV2"}))


def ignore_condition() -> Fault:
    """``If-None-Match: *`` and ``If-Match`` are ignored: an object is replaced or deleted whatever it is."""

    def act(exchange: Exchange) -> None:
        conditions = ("if-none-match", "if-match")
        headers = {name: value for name, value in exchange.request.headers.items() if name not in conditions}
        exchange.send(exchange.objects.answer(replace(exchange.request, headers=headers)))

    return Fault("ignore_condition", act, frozenset({"PutObject", "CompleteMultipartUpload", "DeleteObject"}))


# What the service refuses


def status(
    number: int, code: str | None = None, message: str = "", *, fields: Mapping[str, str | None] | None = None
) -> Fault:
    """The request is not carried out, and answered with a status.

    Args:
        number: The HTTP status.
        code: S3's error code, as `SlowDown`; None means that the body is empty, as of a proxy.
        message: For people.
        fields: Header fields beside the usual ones, as `Retry-After`.
    """
    body = b"" if code is None else s3_error(code, message)
    usual = {"x-amz-request-id": "REQUEST"} if code is None else {"Content-Type": "application/xml"}
    answer = Answer(status=number, fields={**usual, **(fields or {})}, body=body)
    return Fault(f"status {number} {code or ''}".rstrip(), lambda exchange: exchange.send(answer))


def expired_token() -> Fault:
    """The credentials have expired."""
    return replace(status(400, "ExpiredToken", "The provided token has expired."), name="expired_token")


def conflict() -> Fault:
    """Another write of the same object was under way; the same request is to be sent again."""
    return replace(
        status(409, "ConditionalRequestConflict", "The conditional request cannot succeed due to a conflict."),
        name="conflict",
        operations=frozenset({"PutObject", "CompleteMultipartUpload", "DeleteObject"}),
    )


def wrong_region(region: str = "eu-west-1") -> Fault:
    """The bucket lies in another region, which the answer names."""
    fields = {"x-amz-bucket-region": region}
    return replace(status(301, "PermanentRedirect", fields=fields), name="wrong_region")


def clock_skew(seconds: float = 3600.0) -> Fault:
    """The client's clock is some seconds behind the server's, whose time the answer tells."""

    def act(exchange: Exchange) -> None:
        date = formatdate(time.time() + seconds, usegmt=True)
        status(403, "RequestTimeTooSkewed", fields={"Date": date}).act(exchange)

    return Fault("clock_skew", act)


# What happens to the object meanwhile


def replaced(content: bytes = b"replaced") -> Fault:
    """While an object is read it is replaced: half of the body comes, and then the connection breaks.

    Args:
        content: What replaces it.
    """
    return _meanwhile("replaced", lambda exchange: exchange.objects.update({exchange.key: content}))


def deleted() -> Fault:
    """While an object is read it is deleted: half of the body comes, and then the connection breaks."""
    return _meanwhile("deleted", lambda exchange: exchange.objects.pop(exchange.key, None))


def emptied() -> Fault:
    """The object is replaced by one of 0 bytes before it is answered."""

    def act(exchange: Exchange) -> None:
        exchange.objects[exchange.key] = b""
        exchange.send()

    return Fault("emptied", act, frozenset({"GetObject"}))


# Connections that do not come about


def handshake_failure() -> ConnectionFault:
    """The server ends the TLS handshake with an alert; without TLS it sends the same nonsense."""

    def act(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(_PATIENCE)
            sock.recv(65536)  # the ClientHello; unread bytes would turn the close into a reset
            sock.sendall(_HANDSHAKE_FAILURE)

    return ConnectionFault("handshake_failure", act=act)


def wrong_host() -> ConnectionFault:
    """The server's certificate is for another host. TLS only."""
    return ConnectionFault("wrong_host", "wrong_host")


def expired_certificate() -> ConnectionFault:
    """The server's certificate has expired. TLS only."""
    return ConnectionFault("expired_certificate", "expired")


def _cut(name: str, count: int | None, end: Callable[[Wire], None]) -> Fault:
    """Returns a fault that ends the connection after some bytes of the body, or somewhere in it."""

    def act(exchange: Exchange) -> None:
        head, body = exchange.encoded()
        stop = exchange.random.randrange(len(body) or 1) if count is None else count
        exchange.wire.send(head + body[:stop])
        end(exchange.wire)

    return Fault(name, act)


def _meanwhile(name: str, change: Callable[[Exchange], object]) -> Fault:
    def act(exchange: Exchange) -> None:
        head, body = exchange.encoded()
        exchange.wire.send(head + body[: len(body) // 2])
        change(exchange)
        exchange.wire.close()

    return Fault(name, act, frozenset({"GetObject"}))


def _with_a_flipped_bit(exchange: Exchange, content: bytes, index: int | None) -> bytes:
    body = bytearray(content)
    if body:
        position = exchange.random.randrange(len(body)) if index is None else min(index, len(body) - 1)
        body[position] ^= 1
    return bytes(body)


def _altered(answer: Answer, fields: Mapping[str, str | None]) -> Answer:
    """Returns an answer with other header fields."""
    return replace(answer, fields={**answer.fields, **fields})


def _content_range(answer: Answer) -> tuple[int, int, int] | None:
    """Returns first and last byte and total of an answer of a range."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.fields.get("Content-Range") or "")
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))

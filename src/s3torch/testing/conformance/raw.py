"""Signed requests that s3torch's own API would not send, and answers as they come.

They go through s3torch's engine: addresses, signatures, certificates and deadlines are those of a user's client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from s3torch._aws.operations import Operation
from s3torch._transfer import http1

if TYPE_CHECKING:
    from s3torch._aws.bucket import Bucket
    from s3torch._aws.operations import Response
    from s3torch._transfer.http1 import Inbox

__all__ = ["RawRequest"]

_MAX_BODY = 16 * 1024 * 1024
# Those that say nothing of the server's habits: they are sent again, and errors if that goes on.
_MAY_PASS = frozenset({429, 500, 502, 503, 504})


class RawRequest(Operation):
    """A request whose answer is kept, whatever its status.

    Args:
        bucket: Signs it.
        method: Of HTTP.
        key: Of the object; None for a request about the bucket.
        query: Parameters.
        fields: Header fields; those that begin with ``x-amz-`` are signed.
        body: To send.
        payload_sha256: Hex digest that is signed for that of the body; None signs the right one.
        is_forged: Whether the signature is a wrong one.

    Attributes:
        body: Of the answer.
    """

    def __init__(
        self,
        bucket: Bucket,
        method: str,
        key: str | None,
        *,
        query: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        payload_sha256: str | None = None,
        is_forged: bool = False,
    ) -> None:
        signed = {name: value for name, value in (fields or {}).items() if name.startswith("x-amz-")}
        name = f"{method} {'&'.join(query)}" if query else method
        super().__init__(name, method, bucket, key, query=query, signed_fields=signed, memory=len(body))
        self._fields.update({name: value for name, value in (fields or {}).items() if name not in signed})
        if method in {"PUT", "POST"}:
            self._fields["content-length"] = str(len(body))
        self._sent = body
        self._sha256 = hashlib.sha256(body).hexdigest() if payload_sha256 is None else payload_sha256
        self._is_forged = is_forged
        self.body = b""

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        if self.head is None:
            raise AssertionError("a request that was not answered")
        return self.head.status

    @property
    def answered(self) -> Mapping[str, str]:
        """The header fields of the answer, by lower-case name."""
        return {} if self.head is None else self.head.fields

    def request(self) -> Sequence[memoryview]:
        """Return the signed head and the body."""
        head = self._sign(self._sha256)
        if self._is_forged:
            head = _with_wrong_signature(head)
        return [memoryview(head), *([memoryview(self._sent)] if self._sent else [])]

    def response(self, inbox: Inbox) -> Response:
        """Read the answer; only what may pass is an error."""
        self.head = head = yield from http1.read_head(inbox)
        if head.status in _MAY_PASS:
            return (yield from self._refusal(inbox, head))
        if self._method != "HEAD":
            self.body = yield from http1.read_small_body(inbox, head, _MAX_BODY)
        return None


def _with_wrong_signature(head: bytes) -> bytes:
    """Return a head whose signature has another first digit."""
    begin, found, rest = head.partition(b"Signature=")
    if not found:
        return head
    return begin + found + (b"1" if rest[:1] == b"0" else b"0") + rest[1:]

"""An HTTP proxy: how it is asked to lead to a server by CONNECT (RFC 9110 9.3.6), and what its answer means."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field

from s3torch.errors import ProxyError, ProxyRefusedError, S3Error

__all__ = ["Proxy"]

_MOST_OF_A_HEAD = 64 * 1024  # interim ones included
_MOST_INTERIM_HEADS = 16
_CHECK = "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY, or S3ClientConfig(proxies=...)."


@dataclass(frozen=True)
class Proxy:
    """A proxy that is reached over plain TCP.

    Attributes:
        host: Its host.
        port: Its port.
        authorization: The Proxy-Authorization field, or None; it is shown nowhere.
    """

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @staticmethod
    def basic(user: str, password: str) -> str:
        """Return the Proxy-Authorization field of a user (RFC 7617).

        Raises:
            UnicodeEncodeError: They are no text. Bytes of the environment that are not UTF-8 are sent as they are.
        """
        return f"Basic {b64encode(f'{user}:{password}'.encode('utf-8', 'surrogateescape')).decode()}"

    def tunnel_request(self, host: str, port: int) -> bytes:
        """Return the request to lead to a server."""
        where = f"{f'[{host}]' if ':' in host else host}:{port}"
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        if self.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def leads(self, answer: bytes, origin: str, *, has_ended: bool) -> bool:
        """Whether the proxy leads to a server now.

        Args:
            answer: What it has said so far.
            origin: Of the server, for errors.
            has_ended: Whether it says no more.

        Raises:
            ProxyRefusedError: It will not: it wants a password, or has a rule against it.
            ProxyError: It cannot, or does not speak HTTP.
        """
        if len(answer) > _MOST_OF_A_HEAD:
            raise self.failure(origin, "it sent more than the head of an answer to CONNECT")
        for _ in range(_MOST_INTERIM_HEADS):
            line, is_line, _ = answer.partition(b"\r\n")
            _, is_head, rest = answer.partition(b"\r\n\r\n")
            status = _status(line) if is_line else 0
            if status is None:
                raise self.failure(origin, f"it answers {line[:60].decode('latin-1')!r} to CONNECT, which is no HTTP")
            if status >= 300:
                raise self.refusal(origin, status)
            if not is_head:
                if has_ended:
                    raise self.failure(origin, "it closed the connection instead of an answer to CONNECT")
                return False
            if status >= 200:
                if rest:
                    raise self.failure(origin, "it sent more than the head of an answer to CONNECT")
                return True
            answer = rest  # what it has answered is on its way (RFC 9110 15.2)
        raise self.failure(origin, f"it sent more than {_MOST_INTERIM_HEADS} interim answers to CONNECT")

    def refusal(self, origin: str, status: int) -> S3Error:
        """Return the error of an answer of the proxy's own: worth another attempt if the proxy has failed."""
        if status in (401, 407):  # the first by tinyproxy
            what = "it wants another user name and password (or any)" if self.authorization else "it wants a password"
            hint = "Write http://user:password@host:port, with special characters percent-encoded."
            return ProxyRefusedError(f"The proxy {self} does not lead to {origin}: {what}. {hint}", status=status)
        if 400 <= status < 500:
            what = "it has a rule against it"
            return ProxyRefusedError(f"The proxy {self} does not lead to {origin}: {what}. {_CHECK}", status=status)
        return ProxyError(f"The proxy {self} could not reach {origin}. {_CHECK}", status=status)

    def failure(self, origin: str, reason: str) -> ProxyError:
        """Return the error of a proxy that cannot be used.

        Args:
            origin: Where it was to lead; empty if that does not matter.
            reason: The end of a sentence.
        """
        to = f" to {origin}" if origin else ""
        return ProxyError(f"The proxy {self} cannot be used{to}: {reason}. {_CHECK}")


def _status(line: bytes) -> int | None:
    """Return the status of a status line, or None if it is none (RFC 9112 4)."""
    version, _, rest = line.partition(b" ")
    number = rest[:3]
    is_status = version in (b"HTTP/1.1", b"HTTP/1.0") and len(number) == 3 and number.isdigit() and number >= b"100"
    return int(number) if is_status and rest[3:4] in (b"", b" ") else None

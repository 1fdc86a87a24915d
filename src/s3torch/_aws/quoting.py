"""What a body says that is no error of S3's: a few words for the sentence of an error.

A proxy, a gateway or a portal answers with a page or a line of its own. It may repeat what it was sent, signature and
session token included, so whatever looks like one of these is left out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["hide", "hide_users", "is_page", "quote"]

# How much of a body is looked at, in bytes, and how much of it is shown, in characters.
_LOOKED_AT = 16 * 1024
_SHOWN = 200
_OMITTED = "..."

_HIDDEN = re.compile(r"<(script|style|head)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
# Secrets by their names, with the word or the quotes that follow; and keys, tokens and signatures by their looks.
_NAMED_SECRET = re.compile(
    r"(authorization|cookie|credential|password|secret|signature|token|accesskey\w*|\bkey)"
    r"([\w-]*[\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|(?:AWS4\S*|Basic|Bearer)\s+\S+|\S+)",
    re.IGNORECASE,
)
_LOOKS_SECRET = re.compile(r"\b(?:A[KS]IA[A-Z0-9]{12,}|[A-Za-z0-9+/=%_-]{32,})")
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body|h1)\b", re.IGNORECASE | re.DOTALL)


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return a text without these: a server may repeat what it was sent, in an error of S3's, too."""
    for secret in secrets:
        text = text.replace(secret, _OMITTED)
    return text


# Up to the last @ of the text: a password that is not percent-encoded may hold anything.
_USERS = re.compile(r"://(?!\*{3}:\*{3}@[^@]*\Z).*@", re.DOTALL)


def hide_users(text: str) -> str:
    """Return a text with a URL in it, without its user and password, however they are written."""
    if "://" not in text:
        return f"{_OMITTED}@{text.rpartition('@')[2]}" if "@" in text else text
    return _USERS.sub(f"://{_OMITTED}@", text)


def is_page(body: bytes) -> bool:
    """Whether a body is a web page."""
    return _PAGE.match(body[:_LOOKED_AT]) is not None


def quote(body: bytes) -> str:
    """Return what a body says, in printable words without secrets; empty if there is nothing to read.

    Args:
        body: As it arrived; 200 characters of its text are shown at most.
    """
    text = body[:_LOOKED_AT].decode("utf-8", "replace")
    if is_page(body):
        title = _TITLE.search(text)
        text = f"{title[1] if title is not None else ''} {_TAG.sub(' ', _HIDDEN.sub(' ', text))}"
    text = html.unescape(text)
    words = "".join(each if each.isprintable() and each != "\ufffd" else " " for each in text).split()
    plain = _LOOKS_SECRET.sub(_OMITTED, _NAMED_SECRET.sub(rf"\1\2{_OMITTED}", " ".join(words)))
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN].rstrip()}{_OMITTED}"

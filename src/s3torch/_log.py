"""The log: ``logging.getLogger("s3torch")``.

INFO tells once what a user should know: a corrected region or clock, credentials that were refused, a dead address, a
service that asks for fewer requests. DEBUG tells of each request how it went. Neither tells a secret: no header field
of a request is logged, and no query.

While DEBUG is off a request costs one look at an attribute: the loop asks the logger when it gets something to do.
"""

from __future__ import annotations

import logging

__all__ = ["DEBUG", "LOG", "printable"]

DEBUG = logging.DEBUG
LOG = logging.getLogger("s3torch")


def printable(text: str) -> str:
    """Return a text on one line, whatever is in it: a key may hold line breaks."""
    return text if text.isprintable() else ascii(text)[1:-1]

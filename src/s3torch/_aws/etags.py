"""ETags as servers write them: which are the same, and which may be asked for (RFC 9110 8.8.3 and 13.1.1). Pure.

Some servers leave the quotes out, in listings or everywhere. Some proxies make an ETag weak (``W/"x"``) when they
compress; If-Match compares strongly, so a weak one there would match nothing.
"""

from __future__ import annotations

from s3torch._aws.answers import parse_http_date
from s3torch.errors import ArgumentError

__all__ = [
    "are_same",
    "check_condition",
    "for_if_match",
    "lacks_proof",
    "opaque",
    "other_version",
    "preferred",
    "quoted",
]


def opaque(etag: str | None) -> str:
    """Return what an ETag says, without quotes and weakness; empty if it says nothing."""
    if not etag:
        return ""
    if etag[0] == '"':  # nearly all
        return etag.strip('" ')
    return etag.strip().removeprefix("W/").strip('"')


def are_same(one: str, other: str) -> bool:
    """Whether two ETags are of one version, however they are written."""
    return one == other or opaque(one) == opaque(other)


def for_if_match(etag: str | None) -> str | None:
    """Return the ETag for a field If-Match; None if it cannot stand there.

    Not only a weak one cannot. One without quotes is not valid, and nobody knows how the server that wrote it compares;
    its answers have an ETag, too, which is compared with the known one here.
    """
    return etag if etag and etag.startswith('"') and len(etag) > 2 else None


def check_condition(etag: str) -> None:
    """Check an ETag that a caller has given for what is to be replaced or deleted.

    Raises:
        ArgumentError: It is empty, weak or ``*``, and names no version.
    """
    if not opaque(etag) or etag.startswith("W/") or etag == "*":
        raise ArgumentError(
            f"if_match={etag!r} names no version of an object: it must be a strong ETag, as head_object tells it."
        )


def quoted(etag: str) -> str:
    """Return a strong ETag with its quotes."""
    return etag if etag.startswith('"') else f'"{etag}"'


def preferred(known: str | None, found: str | None) -> str | None:
    """Return which of two ETags of one version to go on with: the one that may be asked for, or the newer one."""
    if known == found or not opaque(found):
        return known
    if known is None:
        return found
    return known if for_if_match(known) is not None and for_if_match(found) is None else found


def other_version(
    etag: str | None,
    found_etag: str | None,
    modified: str | None,
    found_modified: str | None,
    modified_at: int | None = None,
) -> tuple[str, str | None, str | None] | None:
    """Return what shows that an answer is of another version of an object than the one that is known; None if nothing.

    Where one of the two has no ETag, Last-Modified decides. It counts seconds: that two versions differ it proves only
    if there is one between them.

    Args:
        etag: That is known, or None.
        found_etag: Of the answer, or None.
        modified: The field Last-Modified that is known, or None.
        found_modified: Of the answer, or None.
        modified_at: The time of a listing, in seconds since the epoch; counts where ``modified`` is not known.

    Returns:
        What it is called, what was known of it, and what was found.
    """
    if etag is not None and etag == found_etag:
        return None
    if opaque(etag) and opaque(found_etag):
        return None if are_same(etag or "", found_etag or "") else ("ETag", etag, found_etag)
    if not found_modified or modified == found_modified:
        return None
    if modified:
        return "Last-Modified", modified, found_modified
    when = None if modified_at is None else parse_http_date(found_modified)
    if modified_at is None or when is None or abs(when - modified_at) <= 1:  # a listing may round in another way
        return None
    return "Last-Modified", f"{modified_at} s after 1970", found_modified


def lacks_proof(
    etag: str | None,
    found_etag: str | None,
    modified: str | None,
    found_modified: str | None,
    modified_at: int | None = None,
    *,
    is_first: bool,
) -> str:
    """Return why an answer does not show that it is of the known version; empty if it does, or if none ever could.

    Two answers are of one version if what both of them have is the same. A server without ETags and Last-Modified has
    nothing to compare: its first answer is believed, and so are those after it that have no more than the first.

    Args:
        etag: As for ``other_version``, and so are the others.
        is_first: Whether no answer came before: then only what was known beforehand counts.

    Returns:
        The rest of a sentence that begins with the answer.
    """
    time_known, time_found = bool(modified) or modified_at is not None, bool(found_modified)
    if found_modified and not modified and modified_at is not None:
        time_found = parse_http_date(found_modified) is not None
    if (opaque(etag) and opaque(found_etag)) or (time_known and time_found):
        return ""
    known, found = _named(etag, is_timed=time_known), _named(found_etag, is_timed=time_found)
    if not known and (is_first or not found):
        return ""
    return f"has {found or 'neither ETag nor Last-Modified'}, and before there was {known or 'neither of the two'}"


def _named(etag: str | None, *, is_timed: bool) -> str:
    """Return what tells a version; empty if nothing does."""
    return " and ".join([*([f"the ETag {etag}"] if opaque(etag) else []), *(["a Last-Modified"] if is_timed else [])])

"""``s3://bucket/key`` taken apart."""

from __future__ import annotations

from s3torch.errors import ArgumentTypeError, InvalidURIError

__all__ = ["parse_s3_uri"]

_SCHEME = "s3://"


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Split an S3 URI into its bucket and its key.

    The key is taken literally: nothing is unquoted, and ``?``, ``#``, ``%`` and ``//`` belong to it.

    Args:
        uri: For example ``s3://bucket/path/to/object``. The key may be empty (``s3://bucket``).

    Returns:
        The bucket and the key.

    Raises:
        InvalidURIError: The scheme is not ``s3://`` or the bucket is empty.
        ArgumentTypeError: ``uri`` is not a string.
    """
    if not isinstance(uri, str):
        raise ArgumentTypeError(f"An S3 URI must be a str such as 's3://bucket/key', got {uri!r}.")
    if not uri.startswith(_SCHEME):
        raise InvalidURIError(f"Only s3:// URIs are supported, got {uri!r}. Write 's3://bucket/key'.")
    bucket, _, key = uri[len(_SCHEME) :].partition("/")
    if not bucket:
        raise InvalidURIError(f"Bucket name must be non-empty, got {uri!r}. Write 's3://bucket/key'.")
    return bucket, key

"""``s3://bucket/key`` taken apart."""

from __future__ import annotations

from s3torch.errors import ArgumentTypeError, InvalidURIError

__all__ = ["parse_checkpoint_uri", "parse_s3_uri"]

_SCHEME = "s3://"


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Split an S3 URI into its bucket and its key.

    The key is taken literally: nothing is unquoted, and ``?``, ``#``, ``%`` and ``//`` belong to it.

    Args:
        uri: For example ``s3://bucket/path/to/object``. The key may be empty (``s3://bucket``).

    Returns:
        The bucket and the key.

    Raises:
        InvalidURIError: The scheme is not ``s3://``, the bucket is empty, or it is no valid Unicode (lone surrogates).
        ArgumentTypeError: ``uri`` is not a string.
    """
    if not isinstance(uri, str):
        raise ArgumentTypeError(f"An S3 URI must be a str such as 's3://bucket/key', got {uri!r}.")
    if not uri.startswith(_SCHEME):
        raise InvalidURIError(f"Only s3:// URIs are supported, got {uri!r}. Write 's3://bucket/key'.")
    bucket, _, key = uri[len(_SCHEME) :].partition("/")
    if not bucket:
        raise InvalidURIError(f"Bucket name must be non-empty, got {uri!r}. Write 's3://bucket/key'.")
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise InvalidURIError(f"The URI {uri!r} cannot be sent: {error.reason}. It must be valid Unicode.") from error
    return bucket, key


def parse_checkpoint_uri(uri: str) -> tuple[str, str]:
    """Split the S3 URI of a checkpoint that is one object: not a bucket, nor a folder.

    S3 would keep an object whose key ends in a slash, but tools show it as an empty folder, and gateways to file
    systems make one of it and drop the content.

    Args:
        uri: For example ``s3://bucket/path/to/object``.

    Returns:
        The bucket and the key.

    Raises:
        InvalidURIError: It is not of this form, or it names a bucket or a folder.
        ArgumentTypeError: ``uri`` is not a string.
    """
    bucket, key = parse_s3_uri(uri)
    if not key or key.endswith("/"):
        what = "folder" if key else "bucket"
        raise InvalidURIError(f"A checkpoint is an object and no {what}, got {uri!r}. Write 's3://bucket/key'.")
    return bucket, key

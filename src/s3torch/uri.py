"""``s3://bucket/key`` taken apart.

A key may hold anything: ``?``, ``#``, ``%`` and ``//`` belong to it, as they do for s3torchconnector and the AWS CLI; a
listing whose keys are written as URIs must lead back to them. Two things are read out of a URI nevertheless:

- the ARN of an access point, which ends behind a slash (``s3://arn:aws:s3:region:account:accesspoint/name/key``). No
  bucket has a name like it;
- a version (``?versionId=...``, at the end), where one object is loaded whose key the user has written down: a
  checkpoint, a safetensors file. No such object can be saved under a key that ends so, so that none is shadowed.
  Everywhere else, in datasets above all, it belongs to the key.
"""

from __future__ import annotations

import re

from s3torch.errors import ArgumentTypeError, InvalidURIError

__all__ = ["parse_checkpoint_uri", "parse_s3_uri", "parse_version_uri"]

_SCHEME = "s3://"
# Access points, of Outposts and of Object Lambda as well, in the form whose last separator is a slash; with a colon it
# ends at the first slash like any bucket (https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-access-points.html).
_ACCESS_POINT = re.compile(
    r"arn:[^:/]+:(?:s3|s3-object-lambda):[^:/]*:[^:/]+:accesspoint/[^:/]+"
    r"|arn:[^:/]+:s3-outposts:[^:/]+:[^:/]+:outpost[:/][^:/]+[:/]accesspoint[:/][^:/]+"
)
# S3's are of these characters, 32 of them; other servers' are UUIDs, numbers or "null".
_VERSION = re.compile(r"(.+)\?versionId=([A-Za-z0-9._~+=-]{1,1024})", re.DOTALL)


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Split an S3 URI into its bucket and its key.

    The key is taken literally: nothing is unquoted, and ``?``, ``#``, ``%`` and ``//`` belong to it.

    Args:
        uri: For example ``s3://bucket/path/to/object``. The key may be empty (``s3://bucket``). Instead of a bucket's
            name there may be the alias or the ARN of an access point.

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
    rest = uri[len(_SCHEME) :]
    found = _ACCESS_POINT.match(rest) if rest.startswith("arn:") else None
    if found is not None and rest[found.end() :][:1] in ("", "/"):
        bucket, key = found[0], rest[found.end() + 1 :]
    else:
        bucket, _, key = rest.partition("/")
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
    if _VERSION.fullmatch(key):
        raise InvalidURIError(f"{uri!r} names a version, which cannot be written: drop what follows the '?'.")
    return bucket, key


def parse_version_uri(uri: str) -> tuple[str, str, str | None]:
    """Split the S3 URI of one object that is to be loaded; it may name a version.

    Args:
        uri: For example ``s3://bucket/key`` or ``s3://bucket/key?versionId=3sL4kqtJlcpXroDTDmJ``.

    Returns:
        The bucket, the key, and the version or None.

    Raises:
        InvalidURIError: As ``parse_s3_uri``.
        ArgumentTypeError: ``uri`` is not a string.
    """
    bucket, key = parse_s3_uri(uri)
    found = _VERSION.fullmatch(key)
    return (bucket, key, None) if found is None else (bucket, found[1], found[2])

"""Whether an object is what a condition wants, for servers that do not heed ``If-None-Match: *`` or ``If-Match``.

Amazon S3 is known to heed both. Of other servers some do not, and answer as if they had: they replace or delete what is
there. So they are asked first. That is not one step: of two writers at the same time both may find what they want.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._aws import etags
from s3torch._aws.operations import HeadObject
from s3torch.errors import AccessDeniedError, ObjectChangedError, ObjectExistsError, ObjectNotFoundError

if TYPE_CHECKING:
    from s3torch._access import Access
    from s3torch._aws.object_options import ObjectOptions

__all__ = ["check_condition", "check_is_new", "check_is_same"]


def check_condition(access: Access, bucket_name: str, key: str, options: ObjectOptions) -> None:
    """Check what ``if_none_match`` or ``if_match`` ask for, before the request that has the condition is sent.

    Args:
        access: Sends the request.
        bucket_name: Of the object.
        key: Of the object.
        options: What the object is written with.

    Raises:
        ObjectExistsError: It is there, and was to be new.
        ObjectChangedError: It has another ETag.
        ObjectNotFoundError: It is not there, and was to be replaced.
        S3Error: It cannot be asked for.
    """
    if options.if_none_match:
        check_is_new(access, bucket_name, key)
    if options.if_match is not None:
        check_is_same(access, bucket_name, key, options.if_match)


def check_is_new(access: Access, bucket_name: str, key: str) -> None:
    """Check that there is no such object, where the server is not known to do so.

    Args:
        access: Sends the request.
        bucket_name: Of the object.
        key: Of the object.

    Raises:
        ObjectExistsError: It is there.
        S3Error: It cannot be asked for.
    """
    try:
        found = _asked(access, bucket_name, key, "written with if_none_match=True")
    except ObjectNotFoundError:
        return
    if found is None:
        return
    raise ObjectExistsError(
        f"{found.subject} is there already, and was not to be replaced.", bucket=bucket_name, key=key
    )


def check_is_same(access: Access, bucket_name: str, key: str, etag: str) -> None:
    """Check that an object is of a version, where the server is not known to do so.

    Args:
        access: Sends the request.
        bucket_name: Of the object.
        key: Of the object.
        etag: What its ETag must be.

    Raises:
        ObjectChangedError: It has another ETag.
        ObjectNotFoundError: It is not there.
        S3Error: It cannot be asked for.
    """
    request = _asked(access, bucket_name, key, "replaced or deleted with if_match")
    if request is None:
        return
    found = request.head.fields.get("etag", "") if request.head is not None else ""
    if not etags.are_same(etag, found):
        raise ObjectChangedError(
            f"{request.subject} is not the version any more that was to be replaced or deleted: its ETag was {etag}, "
            f"and is {found} now. Nothing was changed. Read the new version and decide anew.",
            bucket=bucket_name,
            key=key,
        )


def _asked(access: Access, bucket_name: str, key: str, what: str) -> HeadObject | None:
    """Ask for an object, where the server is not known to heed conditions; None where it is.

    Args:
        access: Sends the request.
        bucket_name: Of the object.
        key: Of the object.
        what: Happens to it afterwards, for the error of who may not ask.

    Raises:
        ObjectNotFoundError: It is not there.
        S3Error: It cannot be asked for.
    """
    bucket = access.bucket(bucket_name)
    if bucket.endpoint.is_amazons:
        return None
    request = HeadObject(bucket, key)
    try:
        access.run([request])
    except AccessDeniedError as error:
        why = f"Before it is {what} it is asked for, as not every server heeds that condition."
        error.args = (f"{error.args[0]} {why}",)
        raise
    return request

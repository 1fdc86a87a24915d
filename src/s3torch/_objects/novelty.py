"""Whether an object is new, for servers that do not heed ``If-None-Match: *``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._aws.operations import HeadObject
from s3torch.errors import AccessDeniedError, ObjectExistsError, ObjectNotFoundError

if TYPE_CHECKING:
    from s3torch._access import Access

__all__ = ["check_is_new"]


def check_is_new(access: Access, bucket_name: str, key: str) -> None:
    """Check, before a request with ``If-None-Match: *`` is sent, that there is no such object.

    Amazon S3 is known to heed that field. Of other servers some do not, and answer as if they had: they replace what is
    there. So they are asked first. That is not one step: of two writers at the same time both may find nothing.

    Args:
        access: Sends the request.
        bucket_name: Of the object.
        key: Of the object.

    Raises:
        ObjectExistsError: It is there.
        S3Error: It cannot be asked for.
    """
    bucket = access.bucket(bucket_name)
    if bucket.endpoint.is_amazons:
        return
    request = HeadObject(bucket, key)
    try:
        access.run([request])
    except ObjectNotFoundError:
        return
    except AccessDeniedError as error:
        why = "Before it is written with if_none_match=True it is asked for, as not every server heeds that condition."
        error.args = (f"{error.args[0]} {why}",)
        raise
    raise ObjectExistsError(
        f"{request.subject} is there already, and was not to be replaced.", bucket=bucket_name, key=key
    )

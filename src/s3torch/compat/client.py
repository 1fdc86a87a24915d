"""The client of s3torchconnector: s3torch's, with its arguments and its words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from s3torch import client, config, writer
from s3torch._aws.listing import KnownObject, ListObjectsResult
from s3torch._aws.user_agent import user_agent as user_agent_of
from s3torch.client import HeadObjectResult
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.readers import S3ReaderConstructorProtocol, choose_constructor
from s3torch.compat.streams import GetObjectStream, ObjectStreams
from s3torch.compat.wording import worded
from s3torch.config import ReaderType, S3ReaderConfig
from s3torch.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ListObjectStream", "S3Client", "S3Writer", "UserAgent", "is_of_the_other"]

_KEYS_OF_A_PAGE = 1000  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html


class UserAgent:
    """The User-Agent field, which names s3torch.

    Args:
        comments: Appended in parentheses.

    Raises:
        ArgumentError: It is no list.
    """

    def __init__(self, comments: list[str] | None = None) -> None:
        if comments is not None and not isinstance(comments, list):
            raise ArgumentError("Argument comments must be a List[str]")
        self.comments = comments or []

    @staticmethod
    def get_default_prefix() -> str:
        """Return the field without comments."""
        return user_agent_of()

    @property
    def prefix(self) -> str:
        """The field."""
        return user_agent_of(self.comments)


class ListObjectStream(client.ListObjectStream):
    """A listing whose errors have the words of s3torchconnector."""

    @worded
    def __next__(self) -> ListObjectsResult:
        return super().__next__()


class S3Writer(writer.S3Writer):
    """A writer whose errors have the words of s3torchconnector."""

    @worded
    def write(self, data: Buffer) -> int:
        """Write bytes."""
        return super().write(data)

    @worded
    def close(self) -> None:
        """Let the object appear."""
        super().close()


class S3Client(client.S3Client):
    """s3torch's client with the arguments of s3torchconnector.

    Args:
        region: Of the buckets.
        endpoint: URL of the server; None finds it.
        user_agent: Its comments are sent.
        s3client_config: See S3ClientConfig.
    """

    _writer = S3Writer

    def __init__(
        self,
        region: str,
        *,
        endpoint: str | None = None,
        user_agent: UserAgent | None = None,
        s3client_config: config.S3ClientConfig | None = None,
    ) -> None:
        comments = [] if user_agent is None else user_agent.comments
        chosen = S3ClientConfig() if s3client_config is None else s3client_config
        super().__init__(region, endpoint=endpoint, user_agent_comments=comments, s3client_config=chosen)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not is_of_the_other(state):
            self.__dict__.update(state)
            return
        comments = re.findall(r"\((.*)\)$", state["_user_agent_prefix"])
        S3Client.__init__(
            self,
            state["_region"],
            endpoint=state["_endpoint"],
            user_agent=UserAgent(comments),
            s3client_config=state["_s3client_config"],
        )

    @property
    def user_agent_prefix(self) -> str:
        """The User-Agent field."""
        return self.user_agent

    def get_object(  # type: ignore[override]  # the arguments of s3torchconnector
        self,
        bucket: str,
        key: str,
        *,
        object_info: KnownObject | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        reader_config: S3ReaderConfig | None = None,
        reader_type: ReaderType | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the constructor makes
        """Return a reader of an object. No request is sent before the first read.

        Args:
            bucket: Of the object.
            key: Of the object.
            object_info: From a listing or ``head_object``, or another object with ``size`` and ``etag``.
            reader_constructor: Makes the reader; None is sequential.
            reader_config: An older way to choose the reader.
            reader_type: The oldest way.
        """
        constructor = choose_constructor(reader_constructor, reader_config, reader_type)
        get_stream = ObjectStreams(self._remote_object(bucket, key, object_info))
        get_object_info: Callable[[], KnownObject]
        if object_info is None or not object_info.etag:  # the tables of datasets keep only the size
            get_object_info = partial(self.head_object, bucket, key)
        else:
            get_object_info = partial(_identity, object_info)
        return constructor(bucket=bucket, key=key, get_object_info=get_object_info, get_stream=get_stream)

    def list_objects(
        self, bucket: str, prefix: str = "", delimiter: str = "", max_keys: int = 1000
    ) -> ListObjectStream:
        """Return an iterator over the pages of a listing, which have 1,000 keys at most, whatever is asked for."""
        pages = super().list_objects(bucket, prefix, delimiter, min(max_keys, _KEYS_OF_A_PAGE))
        return ListObjectStream(self._access, pages.bucket, pages.prefix, pages.delimiter, pages.max_keys)

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Return size, ETag and the like of an object."""
        return worded(super().head_object, is_head=True)(bucket, key, version_id=version_id)

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        """Delete an object. That it does not exist is no error."""
        worded(super().delete_object)(bucket, key, if_match=if_match)

    def copy_object(
        self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str, *, version_id: str | None = None
    ) -> None:
        """Copy an object. The key to copy from is percent-encoded, as s3torchconnector wants it."""
        copy = worded(super().copy_object, is_head=True)
        copy(src_bucket, unquote(src_key), dst_bucket, dst_key, version_id=version_id)

    def _get_object_stream(
        self, bucket: str, key: str, start: int | None = None, end: int | None = None
    ) -> GetObjectStream:
        return ObjectStreams(self._remote_object(bucket, key))(start, end)


def is_of_the_other(state: dict[str, Any]) -> bool:
    """Return whether s3torchconnector has pickled this client or dataset."""
    return {"_region", "_endpoint", "_s3client_config"} <= state.keys()


def _identity(object_info: KnownObject) -> KnownObject:
    return object_info

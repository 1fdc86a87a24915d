"""S3Client: the requests that s3torch makes, for direct use as well.

It is one file of over 450 lines: each method is a few of them, and the rest says what it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, overload

from s3torch import _buffer
from s3torch._access import Access
from s3torch._aws.answers import parse_http_date
from s3torch._aws.copying import CopySource
from s3torch._aws.endpoint import check_endpoint_url
from s3torch._aws.express import RenameObject
from s3torch._aws.listing import KnownObject, RestoreStatus
from s3torch._aws.object_options import ObjectOptions
from s3torch._aws.operations import HeadObject
from s3torch._objects.appending import append
from s3torch._objects.copying import copy
from s3torch._objects.deleting import delete
from s3torch._objects.listing import ListObjectStream
from s3torch._objects.novelty import check_is_new
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch._objects.uploads import MultipartUploadInfo, abort_multipart_upload, list_multipart_uploads
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.errors import ArgumentError, ArgumentTypeError, ObjectNotFoundError
from s3torch.readers import S3Reader, open_reader
from s3torch.writer import S3Writer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Buffer

    from s3torch._aws.bucket import Bucket
    from s3torch._transfer.stats import TransferStats

__all__ = ["HeadObjectResult", "ListObjectStream", "MultipartUploadInfo", "S3Client"]


class HeadObjectResult(NamedTuple):
    """What is known of an object without reading it.

    Attributes:
        etag: Its ETag, with the quotes.
        size: In bytes.
        last_modified: Seconds since the epoch.
        storage_class: Such as ``STANDARD_IA``; None for STANDARD, as S3 leaves it out.
        restore_status: Of an archived object that is or was restored; None of any other.
        version_id: None in a bucket without versions.
    """

    etag: str
    size: int
    last_modified: int
    storage_class: str | None = None
    restore_status: RestoreStatus | None = None
    version_id: str | None = None


class S3Client:
    """A client of Amazon S3 or of a server that speaks its protocol.

    Making one sends nothing. It can be shared by threads and used after ``fork``: each thread of each process has
    connections of its own. It pickles as its configuration; secrets are never part of it.

    Args:
        region: Of the buckets. None: ``AWS_REGION``, ``AWS_DEFAULT_REGION``, the profile's, or the bucket's own.
        endpoint: URL of the server. None: ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, the profile's, or Amazon S3.
        user_agent_comments: Appended to the User-Agent field in parentheses.
        s3client_config: Everything else.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        ConfigError: The endpoint is not an http or https URL.
    """

    _writer = S3Writer  # made by ``put_object``

    def __init__(
        self,
        region: str | None = None,
        *,
        endpoint: str | None = None,
        user_agent_comments: Sequence[str] = (),
        s3client_config: S3ClientConfig | None = None,
    ) -> None:
        _buffer.check_text(region=region, endpoint=endpoint)
        if isinstance(user_agent_comments, str) or not all(isinstance(comment, str) for comment in user_agent_comments):
            raise ArgumentTypeError(f"user_agent_comments must be a list of str, got {user_agent_comments!r}.")
        if s3client_config is not None and not isinstance(s3client_config, S3ClientConfig):
            raise ArgumentTypeError(f"s3client_config must be an S3ClientConfig, got {s3client_config!r}.")
        if endpoint is not None:
            check_endpoint_url(endpoint)
        self.given_region = region
        self.endpoint = endpoint
        self.s3client_config = s3client_config or S3ClientConfig()
        self._access = self._new_access(tuple(user_agent_comments))

    def __repr__(self) -> str:
        return (
            f"S3Client(region={self.given_region!r}, endpoint={self.endpoint!r}, "
            f"s3client_config={self.s3client_config!r})"
        )

    @property
    def region(self) -> str:
        """The region that requests begin with."""
        return self._access.region

    @property
    def user_agent(self) -> str:
        """The User-Agent field of all requests."""
        return self._access.user_agent

    @property
    def stats(self) -> TransferStats:
        """What this process has sent and received through this client, over all its threads."""
        return self._access.stats

    def get_object(
        self,
        bucket: str,
        key: str,
        *,
        object_info: KnownObject | None = None,
        reader_config: S3ReaderConfig | None = None,
        version_id: str | None = None,
    ) -> S3Reader:
        """Return a reader of an object. No request is sent before the first read.

        Args:
            bucket: Of the object.
            key: Of the object.
            object_info: From a listing or ``head_object``, or another object with ``size`` and ``etag``: saves asking
                for the size, and pins the version by its ETag (by size and ``last_modified`` if there is none).
            reader_config: Which reader; None is ``S3ReaderConfig.sequential()``.
            version_id: The version to read; None is the newest.

        Raises:
            ArgumentTypeError: ``reader_config`` is no S3ReaderConfig, or ``object_info`` has no size or no ETag.
            ArgumentError: The bucket is empty, or the size negative.
        """
        return open_reader(self._remote_object(bucket, key, object_info, version_id), reader_config)

    def _remote_object(
        self,
        bucket: str,
        key: str,
        object_info: KnownObject | None = None,
        version_id: str | None = None,
    ) -> RemoteObject:
        """Return what a reader of an object reads; see ``get_object``."""
        _check_object(bucket, key)
        if version_id is not None:
            _buffer.check_text(version_id=version_id)
        if object_info is None:
            return RemoteObject(self._access, bucket, key, version_id=version_id)
        size, etag = _buffer.size_and_etag(object_info)
        modified_at = _buffer.modified_at(object_info)
        return RemoteObject(
            self._access, bucket, key, size=size, etag=etag, modified_at=modified_at, version_id=version_id
        )

    @overload
    def read_range(self, bucket: str, key: str, start: int, stop: int | None = None, into: None = None) -> bytes: ...
    @overload
    def read_range(self, bucket: str, key: str, start: int, stop: int | None, into: Buffer) -> int: ...
    def read_range(
        self, bucket: str, key: str, start: int, stop: int | None = None, into: Buffer | None = None
    ) -> bytes | int:
        """Read the bytes ``[start, stop)`` of an object, large ranges in parallel parts.

        Like a slice, a range that reaches beyond the end of the object gives what there is.

        Args:
            bucket: Of the object.
            key: Of the object.
            start: First byte, from 0.
            stop: The byte after the last; None reads to the end, or as much as ``into`` holds.
            into: Writable C-contiguous memory to receive into, of at least ``stop - start`` bytes. None returns bytes.

        Returns:
            The bytes, or how many were received into ``into``.

        Raises:
            ArgumentError: The range is negative or backwards, or ``into`` is too small, read-only or not contiguous.
            NotFoundError: There is no such bucket or object.
            S3Error: Any other failure; ``into`` may be partly overwritten then.
        """
        _check_object(bucket, key)
        start, stop = _buffer.check_range(start, stop)
        remote = RemoteObject(self._access, bucket, key)
        if into is None:
            return remote.read(start, stop)
        view = _buffer.writable_bytes(into)
        if stop is not None:
            if len(view) < stop - start:
                raise ArgumentError(f"into has {len(view)} bytes, and the range [{start}, {stop}) {stop - start}.")
            view = view[: stop - start]
        return remote.read_into(start, view)

    @overload
    def read_ranges(
        self, bucket: str, key: str, ranges: Iterable[tuple[int, int]], into: None = None, *, max_gap: int = ...
    ) -> list[bytes]: ...
    @overload
    def read_ranges(
        self, bucket: str, key: str, ranges: Iterable[tuple[int, int]], into: Iterable[Buffer], *, max_gap: int = ...
    ) -> None: ...
    def read_ranges(
        self,
        bucket: str,
        key: str,
        ranges: Iterable[tuple[int, int]],
        into: Iterable[Buffer] | None = None,
        *,
        max_gap: int = DEFAULT_MAX_GAP,
    ) -> list[bytes] | None:
        """Read many ranges of an object concurrently, those that lie near each other by one request.

        Args:
            bucket: Of the object.
            key: Of the object.
            ranges: ``(start, stop)`` each, half-open, in any order; they may overlap.
            into: Writable C-contiguous memory (or CPU tensors) of each range's size. None returns bytes.
            max_gap: Bytes between two ranges that are read for nothing rather than sending another request.

        Returns:
            The bytes of each range, in the order of ``ranges``; None if ``into`` was given.

        Raises:
            ArgumentError: A range is negative, backwards or reaches beyond the object's end, or its memory does not
                fit.
            NotFoundError: There is no such bucket or object.
            S3Error: Any other failure; the memory may be partly overwritten then.
        """
        _check_object(bucket, key)
        return RemoteObject(self._access, bucket, key).read_vector(ranges, into, max_gap)

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Return size, ETag and the like of an object.

        Raises:
            NotFoundError: There is no such bucket or object.
            S3Error: Any other failure.
        """
        _check_object(bucket, key)
        _buffer.check_text(version_id=version_id)
        request = HeadObject(self._access.bucket(bucket), key, version_id)
        self._access.run([request])
        if request.head is None:
            raise AssertionError("a HEAD that succeeded without an answer")
        fields = request.head.fields
        return HeadObjectResult(
            fields.get("etag", ""),
            request.size,
            int(parse_http_date(fields.get("last-modified", "")) or 0),
            fields.get("x-amz-storage-class"),
            _restore_status(fields.get("x-amz-restore", "")),
            fields.get("x-amz-version-id"),
        )

    def list_objects(
        self, bucket: str, prefix: str = "", delimiter: str = "", max_keys: int = 1000
    ) -> ListObjectStream:
        """Return an iterator over the pages of a listing.

        Args:
            bucket: To list.
            prefix: Only keys that begin with it; it is not a directory.
            delimiter: Group keys by what stands before this, mostly ``/``.
            max_keys: Keys of one page, 1 to 1,000.

        Raises:
            ArgumentError: ``max_keys`` is out of range.
        """
        if prefix is None:
            raise ArgumentTypeError("prefix must be a str, got None.")
        _buffer.check_text(prefix=prefix, delimiter=delimiter)
        _check_names(bucket, prefix)
        max_keys = _buffer.as_index("max_keys", max_keys)
        if not 1 <= max_keys <= 1000:
            raise ArgumentError(f"max_keys={max_keys} is out of range: a page has 1 to 1000 keys.")
        return ListObjectStream(self._access, bucket, prefix, delimiter, max_keys)

    def put_object(
        self,
        bucket: str,
        key: str,
        storage_class: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        server_side_encryption: str | None = None,
        sse_kms_key_id: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
        resume: bool = False,
        size: int | None = None,
    ) -> S3Writer:
        """Return a writer of an object, which appears when the writer is closed. No request is sent yet.

        Args:
            bucket: Of the object.
            key: Of the object.
            storage_class: Such as ``STANDARD_IA``; None is the bucket's default.
            metadata: Names and values that are kept with the object, 2 kB of ASCII at most.
            content_type: Its media type, such as ``application/zip``; None lets the service choose.
            server_side_encryption: ``AES256`` (SSE-S3), ``aws:kms`` or ``aws:kms:dsse``; None is the bucket's default.
            sse_kms_key_id: The key of KMS; None is the account's.
            if_none_match: Whether to refuse, on closing, to replace an object that is there already. Not every server
                heeds that, so those that are not Amazon S3 are asked for the object just before (HeadObject): if such a
                server does not heed it, the last of two writers at the same time replaces what the first has written.
            if_match: The ETag of the object that is to be replaced, as ``head_object`` or a listing tells it: if it has
                another one on closing, it stays. So of two programs that have read the same version one fails. What is
                said of servers that do not heed ``if_none_match`` holds for this, too.
            resume: Whether to go on where an earlier writer of this key was interrupted: parts that arrived then, and
                hold the same bytes, are not sent again. If this one is interrupted in turn, by an exception, an exit or
                a crash, what arrived stays for the next, and is paid for until ``abort_multipart_upload``. Parts of
                objects that KMS encrypts cannot be compared, and are sent again. Say ``size`` in all of these writers,
                or in none.
            size: Bytes that will be written, where that is known. Then all parts are of one size, no larger than 10,000
                of them must be. Else parts grow, and with them the memory: see docs/checkpoints.md. To write more, or
                to close the writer after fewer, is an ArgumentError, and stores nothing.

        Raises:
            ArgumentError: A name is empty, an option cannot be sent or contradicts another, or ``size`` is more than
                S3 takes (10,000 parts of 5 GiB, 50 TB).
        """
        _check_object(bucket, key)
        options = ObjectOptions(
            storage_class=storage_class,
            metadata=metadata,
            content_type=content_type,
            server_side_encryption=server_side_encryption,
            sse_kms_key_id=sse_kms_key_id,
            if_none_match=if_none_match,
            if_match=if_match,
        )
        if not isinstance(resume, bool):
            raise ArgumentTypeError(f"resume must be a bool, got {resume!r}.")
        size = None if size is None else _buffer.as_index("size", size)
        return self._writer(self._access, bucket, key, options, resumes=resume, size=size)

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUploadInfo]:
        """Return the uploads that were begun and neither completed nor aborted, by key, the oldest of a key first.

        Args:
            bucket: To list.
            prefix: Only keys that begin with it.

        Raises:
            BucketNotFoundError: There is no such bucket.
            S3Error: Any other failure.
        """
        _check_names(bucket, prefix)
        return list_multipart_uploads(self._access, bucket, prefix)

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Delete the parts of an upload that was begun. That there is none is no error.

        Args:
            bucket: Of the object.
            key: Of the object.
            upload_id: Which upload of that key.
        """
        _check_object(bucket, key)
        abort_multipart_upload(self._access, bucket, key, upload_id)

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        """Delete an object. That it does not exist is no error, as in S3, whatever the condition.

        Args:
            bucket: Of the object.
            key: Of the object.
            if_match: Its ETag, as ``head_object`` or a listing tells it: if it has another one, it stays. None deletes
                it whatever it is. Amazon S3 needs the permission s3:GetObject for it, too; other servers are asked for
                the object just before (HeadObject), as not every one heeds the condition. In a bucket with versions
                it is compared with the newest.

        Raises:
            ArgumentError: A name is empty, or ``if_match`` is no strong ETag.
            ObjectChangedError: The object has another ETag; it was not deleted. It may have been deleted and written
                anew, if the answer to an earlier attempt was lost.
            S3Error: Any other failure.
        """
        _check_object(bucket, key)
        _buffer.check_text(if_match=if_match)
        delete(self._access, bucket, key, if_match)

    def copy_object(
        self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str, *, version_id: str | None = None
    ) -> None:
        """Copy an object within S3; above 5 GiB in parts that are copied side by side.

        Its metadata are kept, and up to 5 GiB its tags.

        Args:
            src_bucket: To copy from.
            src_key: To copy from, as it is: not percent-encoded.
            dst_bucket: To copy to.
            dst_key: To copy to; replaced if it exists.
            version_id: The version to copy; None is the newest.

        Raises:
            ObjectNotFoundError: There is nothing to copy.
            ObjectChangedError: The object was replaced while it was copied in parts.
            S3Error: Any other failure; the parts that were copied are deleted.
        """
        _check_object(src_bucket, src_key)
        _check_object(dst_bucket, dst_key)
        self._access.bucket(src_bucket)  # refuses a name that no bucket can have
        _buffer.check_text(version_id=version_id)
        copy(self._access, CopySource(src_bucket, src_key, version_id), dst_bucket, dst_key)

    def rename_object(self, bucket: str, src_key: str, dst_key: str, *, if_none_match: bool = False) -> None:
        """Give an object of a directory bucket (S3 Express One Zone) another key, at once and whatever its size.

        Args:
            bucket: Of the object.
            src_key: Its key.
            dst_key: The key that it gets; what has that key is replaced.
            if_none_match: Whether to refuse to replace an object that is there already; as for ``put_object``, servers
                other than Amazon S3 are asked for it just before.

        Raises:
            ArgumentError: A name is empty, or the bucket is no directory bucket.
            ObjectNotFoundError: There is no object ``src_key``.
            ObjectExistsError: There is an object ``dst_key``, and it was not to be replaced.
            S3Error: Any other failure.
        """
        _check_object(bucket, src_key)
        _check_object(bucket, dst_key)
        where = self._directory_bucket(bucket, "RenameObject", "copy_object and delete_object do that elsewhere")
        if if_none_match:
            check_is_new(self._access, bucket, dst_key)
        try:
            self._access.run([RenameObject(where, src_key, dst_key, if_none_match=if_none_match)])
        except ObjectNotFoundError as error:
            error.key = src_key
            error.args = (f"s3://{bucket}/{src_key}, which was to be renamed, does not exist.",)
            raise

    def append_object(self, bucket: str, key: str, data: Buffer, *, offset: int) -> None:
        """Write bytes behind those of an object of a directory bucket (S3 Express One Zone).

        Readers see all of the bytes or none of them. What is appended is one request, which holds 5 GB at most; there
        is no writer for it, as a writer's object does not appear before it is closed.

        Args:
            bucket: Of the object.
            key: Of the object.
            data: C-contiguous memory; must not change meanwhile.
            offset: The object's size, in bytes; 0 makes a new object. With another size nothing is written, so of two
                programs that append at the same place one fails.

        Raises:
            ArgumentError: A name is empty, there is nothing to append, or the bucket is no directory bucket.
            RequestError: The object has another size (``code`` is ``InvalidWriteOffset``).
            S3Error: Any other failure. Where no answer came, and the object ends with these bytes at this place, that
                is no failure.
        """
        _check_object(bucket, key)
        offset = _buffer.as_index("offset", offset)
        if offset < 0:
            raise ArgumentError(f"offset={offset} is negative: it is the object's size in bytes.")
        where = self._directory_bucket(bucket, "Appending", "write the object anew elsewhere")
        append(self._access, where, key, _buffer.readable_bytes(data), offset)

    def _directory_bucket(self, bucket: str, what: str, remedy: str) -> Bucket:
        where = self._access.bucket(bucket)
        if not where.endpoint.is_directory:
            raise ArgumentError(
                f"{what} is for directory buckets (S3 Express One Zone, names that end in --x-s3), and {bucket!r} is "
                f"none: {remedy}.",
                bucket=bucket,
            )
        return where

    def close(self) -> None:
        """Close the calling thread's connections; the client can still be used.

        What is under way is not lost: it is sent again, over new connections, when somebody waits for it.
        """
        self._access.close()

    def _new_access(self, user_agent_comments: tuple[str, ...]) -> Access:
        """Return what sends this client's requests."""
        return Access(self.s3client_config, self.given_region, self.endpoint, user_agent_comments)


def _restore_status(field: str) -> RestoreStatus | None:
    """Return what the field says: ``ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"``.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
    """
    said = dict(re.findall(r'([a-z-]+)="([^"]*)"', field))
    if "ongoing-request" not in said:
        return None
    expiry = parse_http_date(said["expiry-date"]) if "expiry-date" in said else None
    return RestoreStatus(said["ongoing-request"] == "true", None if expiry is None else int(expiry))


def _check_names(bucket: str, key: str) -> None:
    if type(bucket) is str and type(key) is str and bucket and bucket.isascii() and key.isascii():
        return  # nothing can be wrong; this is asked for each sample of a dataset
    for name, value in (("bucket", bucket), ("key", key)):
        if not isinstance(value, str):
            raise ArgumentTypeError(f"{name} must be a str, got {value!r}.")
    _buffer.check_text(bucket=bucket, key=key)
    if not bucket:
        raise ArgumentError("Bucket should be specified: it is empty.")


def _check_object(bucket: str, key: str) -> None:
    _check_names(bucket, key)
    if not key:
        raise ArgumentError(f"Key should be specified: s3://{bucket} is a bucket and no object.", bucket=bucket)

"""Where the checks are made: one bucket, and the keys below one prefix, which nobody else uses."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html import unescape
from typing import TYPE_CHECKING
from urllib.parse import unquote

from s3torch._aws.answers import element_text
from s3torch.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import S3Error
from s3torch.testing.conformance.findings import UnfulfilledError, equal
from s3torch.testing.conformance.raw import RawRequest

if TYPE_CHECKING:
    from s3torch._aws.listing import ObjectInfo
    from s3torch._objects.uploads import MultipartUploadInfo

__all__ = ["MiB", "Site"]

MiB = 1024 * 1024
_CLEANING = 120.0  # seconds after which nothing more is removed: a server may have stopped answering
_MAX_PAGES = 200  # of any listing of ours: a server that never ends one is told so


@dataclass(kw_only=True)
class Site:
    """The bucket and prefix that checks work in, and how to reach them.

    Args:
        bucket: Its name.
        prefix: Of every key that is touched; ends in ``/``.
        region: Of the bucket, or None.
        endpoint: URL of the server, or None.
        config: Of all clients.
    """

    bucket: str
    prefix: str
    region: str | None
    endpoint: str | None
    config: S3ClientConfig
    client: S3Client = field(init=False)
    server: str = field(default="", init=False)
    _touched: set[str] = field(default_factory=set, init=False)
    _begun: list[tuple[str, str]] = field(default_factory=list, init=False)
    _names: Iterator[int] = field(default_factory=itertools.count, init=False)

    def __post_init__(self) -> None:
        self.client = S3Client(self.region, endpoint=self.endpoint, s3client_config=self.config)

    def new_client(self, **changes: object) -> S3Client:
        """Return another client of the same server, with another configuration."""
        config = replace(self.config, **changes)  # type: ignore[arg-type]  # the fields of S3ClientConfig
        return S3Client(self.region, endpoint=self.endpoint, s3client_config=config)

    def key(self, name: str = "") -> str:
        """Return a key that no other check uses, below a prefix of its own; it is removed in the end."""
        return self.own(f"{self.folder()}{name or 'object'}")

    def own(self, key: str) -> str:
        """Return a key, and note that it is to be removed in the end."""
        if not key.startswith(self.prefix):
            raise AssertionError(f"{key!r} does not belong to the checks")
        self._touched.add(key)
        return key

    def folder(self) -> str:
        """Return a prefix that no other check uses."""
        return f"{self.prefix}{next(self._names):03}/"

    def uri(self, key: str) -> str:
        """Return the URI of a key or prefix."""
        return f"s3://{self.bucket}/{key}"

    def put(self, content: bytes, key: str = "", client: S3Client | None = None) -> str:
        """Store an object through a writer; returns its key."""
        key = self.own(key) if key else self.key()
        with (client or self.client).put_object(self.bucket, key) as writer:
            writer.write(content)
        return key

    def get(self, key: str) -> bytes:
        """Return an object as one raw GET brings it.

        Raises:
            UnfulfilledError: The status is not 200.
        """
        answer = self.send("GET", key)
        equal(answer.status, 200, f"the status of a GET of {key[len(self.prefix) :]!r}")
        return answer.body

    def read(self, key: str, client: S3Client | None = None) -> bytes:
        """Return an object as a reader has it."""
        with (client or self.client).get_object(self.bucket, key) as reader:
            return bytes(reader.read())

    def listed(self, prefix: str, max_keys: int = 1000) -> list[ObjectInfo]:
        """Return all objects under a prefix, in the order in which the pages have them.

        Raises:
            UnfulfilledError: There are too many pages.
        """
        found: list[ObjectInfo] = []
        for number, page in enumerate(self.client.list_objects(self.bucket, prefix, max_keys=max_keys)):
            found += page.object_info
            if number > _MAX_PAGES:
                raise UnfulfilledError(f"a listing of a few keys has more than {_MAX_PAGES} pages")
        return found

    def send(
        self,
        method: str,
        key: str | None,
        *,
        query: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        payload_sha256: str | None = None,
        is_forged: bool = False,
    ) -> RawRequest:
        """Send one signed request; returns it with its answer, whatever the status. Arguments as of `RawRequest`."""
        if key is not None:
            self.own(key)
        access = self.client._access  # the seam to the engine; the API would interpret the answer
        request = RawRequest(
            access.bucket(self.bucket),
            method,
            key,
            query=query,
            fields=fields,
            body=body,
            payload_sha256=payload_sha256,
            is_forged=is_forged,
        )
        access.run([request])
        self.server = request.answered.get("server", self.server)
        return request

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload by a raw request; returns its id."""
        begun = self.send("POST", key, query={"uploads": ""})
        equal(begun.status, 200, "the status of CreateMultipartUpload")
        upload_id = element_text(begun.body, "UploadId")
        self._begun.append((key, upload_id))
        return upload_id

    def send_part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        """Send one part; returns its ETag."""
        sent = self.send("PUT", key, query={"partNumber": str(number), "uploadId": upload_id}, body=content)
        equal(sent.status, 200, "the status of UploadPart")
        return sent.answered.get("etag", "")

    def complete_upload(
        self, key: str, upload_id: str, etags: list[str], fields: Mapping[str, str] | None = None
    ) -> RawRequest:
        """Complete an upload of parts with these ETags; returns the request."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag.replace(chr(34), '&quot;')}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        document = (
            '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"{parts}</CompleteMultipartUpload>"
        )
        return self.send("POST", key, query={"uploadId": upload_id}, fields=fields, body=document.encode())

    def clean(self) -> list[str]:
        """Remove every object, version and upload below the prefix, and nothing else; returns the keys that are left.

        What a listing brings that does not begin with the prefix is left alone: some servers ignore the prefix.
        """
        deadline = time.monotonic() + _CLEANING
        uploads_there = ((upload.key, upload.upload_id) for upload in self._uploads())
        for key, upload_id in {*self._begun, *uploads_there}:  # some servers do not list ours
            self._try(deadline, self.client.abort_multipart_upload, key, upload_id)
        for key in sorted(self._touched.union(self._keys_listed() or ())):
            self._try(deadline, self.client.delete_object, key)
        self._delete_versions(deadline)
        uploads = {upload.key for upload in self._uploads()}
        versions = {key for key, _ in self._versions()}
        return sorted(self._keys_there() | uploads | versions)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _keys_listed(self) -> set[str] | None:
        """Return the keys below the prefix; None where the server cannot list them."""
        try:
            return {info.key for info in self.listed(self.prefix) if info.key.startswith(self.prefix)}
        except (S3Error, UnfulfilledError):
            return None

    def _keys_there(self) -> set[str]:
        """Return the keys below the prefix; by asking for each where the server cannot list them."""
        listed = self._keys_listed()
        return listed if listed is not None else {key for key in self._touched if self._is_there(key)}

    def _is_there(self, key: str) -> bool:
        try:
            return self.send("HEAD", key).status == 200
        except S3Error:
            return True  # nobody knows

    def _uploads(self) -> list[MultipartUploadInfo]:
        try:
            uploads = self.client.list_multipart_uploads(self.bucket, self.prefix)
        except S3Error:
            return []
        return [upload for upload in uploads if upload.key.startswith(self.prefix)]

    def _try(self, deadline: float, remove: Callable[..., object], *arguments: str) -> None:
        """Remove something, while there is time; that it cannot be removed shows in the end."""
        if time.monotonic() < deadline:
            with suppress(S3Error):
                remove(self.bucket, *arguments)

    def _versions(self) -> list[tuple[str, str]]:
        """Return key and id of the next versions and delete markers; none in a bucket that keeps none."""
        query = {"versions": "", "prefix": self.prefix, "encoding-type": "url"}
        try:
            page = self.send("GET", None, query=query)
        except S3Error:
            return []
        return [pair for pair in _parse_versions(page.body) if pair[0].startswith(self.prefix)]

    def _delete_versions(self, deadline: float) -> None:
        def delete(_bucket: str, key: str, version_id: str) -> None:
            self.send("DELETE", key, query={"versionId": version_id})

        before: list[tuple[str, str]] = []
        while (versions := self._versions()) and versions != before:  # a server may refuse to delete them
            for key, version_id in versions:
                self._try(deadline, delete, key, version_id)
            before = versions


_VERSION = re.compile(r"<(Version|DeleteMarker)>(.*?)</\1>", re.DOTALL)


def _parse_versions(document: bytes) -> list[tuple[str, str]]:
    """Return key and version id of each version in a page of ListObjectVersions with ``encoding-type=url``."""
    if b"<ListVersionsResult" not in document:
        return []
    text = document.decode("utf-8", "replace")
    decode: Callable[[str], str] = unquote if "<EncodingType>url</EncodingType>" in text else unescape
    found = []
    for _, entry in _VERSION.findall(text):
        key, version_id = (re.search(f"<{name}>(.*?)</{name}>", entry) for name in ("Key", "VersionId"))
        if key is not None and version_id is not None:
            found.append((decode(key[1]), unescape(version_id[1])))
    return found

"""What can be said about an object when it is stored, beside its bytes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from s3torch._aws import etags
from s3torch._transfer.http1 import format_fields
from s3torch.errors import ArgumentError, ArgumentTypeError

__all__ = ["ObjectOptions"]

# Amazon S3 takes no more, names and values together
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html).
_MAX_METADATA = 2048
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token (RFC 9110 5.6.2)
_CONDITIONS = ("if-none-match", "if-match")
_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOptions:
    """Options of PutObject and CreateMultipartUpload; see ``S3Client.put_object`` for the meaning of each.

    Raises:
        ArgumentTypeError: A value has the wrong type.
        ArgumentError: A value cannot be sent, or two contradict each other.
    """

    storage_class: str | None = None
    metadata: Mapping[str, str] | None = None
    content_type: str | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    if_none_match: bool = False
    if_match: str | None = None

    def __post_init__(self) -> None:
        for name in ("storage_class", "content_type", "server_side_encryption", "sse_kms_key_id", "if_match"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ArgumentTypeError(f"{name} must be a str, got {value!r}.")
        if not isinstance(self.if_none_match, bool):
            raise ArgumentTypeError(f"if_none_match must be a bool, got {self.if_none_match!r}.")
        if self.server_side_encryption not in (None, *_ENCRYPTIONS):
            raise ArgumentError(
                f"server_side_encryption={self.server_side_encryption!r} must be one of {', '.join(_ENCRYPTIONS)}."
            )
        if self.sse_kms_key_id is not None and not (self.server_side_encryption or "").startswith("aws:kms"):
            raise ArgumentError("sse_kms_key_id needs server_side_encryption='aws:kms' or 'aws:kms:dsse'.")
        self._check_condition()
        self._check_metadata()
        format_fields(self.fields())  # refuses what cannot stand in a header

    def fields(self) -> dict[str, str]:
        """Return the header fields of PutObject, all of which are to be signed."""
        fields = {
            "x-amz-storage-class": self.storage_class,
            "content-type": self.content_type,
            "x-amz-server-side-encryption": self.server_side_encryption,
            "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
            "if-none-match": "*" if self.if_none_match else None,
            "if-match": None if self.if_match is None else etags.quoted(self.if_match),
        }
        fields |= {f"x-amz-meta-{name.lower()}": value for name, value in (self.metadata or {}).items()}
        return {name: value for name, value in fields.items() if value}

    def fields_to_create(self) -> dict[str, str]:
        """Return those of CreateMultipartUpload, which replaces nothing yet."""
        return {name: value for name, value in self.fields().items() if name not in _CONDITIONS}

    def fields_to_complete(self) -> dict[str, str]:
        """Return those of CompleteMultipartUpload."""
        return {name: value for name, value in self.fields().items() if name in _CONDITIONS}

    def _check_condition(self) -> None:
        if self.if_match is None:
            return
        if self.if_none_match:
            raise ArgumentError("if_match and if_none_match=True contradict each other: one wants an object, one none.")
        etags.check_condition(self.if_match)

    def _check_metadata(self) -> None:
        if self.metadata is None:
            return
        if not isinstance(self.metadata, Mapping):
            raise ArgumentTypeError(f"metadata must be a mapping of str to str, got {self.metadata!r}.")
        items: Iterable[tuple[object, object]] = self.metadata.items()
        for name, value in items:
            if not isinstance(name, str) or not isinstance(value, str):
                raise ArgumentTypeError(f"metadata must be a mapping of str to str, got {name!r}: {value!r}.")
            if _NAME.fullmatch(name) is None:
                raise ArgumentError(f"metadata cannot be named {name!r}: letters, digits and !#$%&'*+.^_`|~- can be.")
            if not (value.isascii() and value.isprintable()) or value != value.strip():
                raise ArgumentError(
                    f"The metadata {name!r} is {value!r}: it must be printable ASCII without spaces around it. "
                    "Encode other text, by base64 for example."
                )
        if len({name.lower() for name in self.metadata}) < len(self.metadata):
            raise ArgumentError(f"Two names in metadata differ by case only, which S3 ignores: {list(self.metadata)}.")
        size = sum(len(name) + len(value) for name, value in self.metadata.items())
        if size > _MAX_METADATA:
            raise ArgumentError(f"The metadata has {size} bytes: S3 takes at most {_MAX_METADATA} for an object.")

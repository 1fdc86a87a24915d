"""The native client of s3torchconnector: s3torch's client, which reads by streams."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.streams import GetObjectStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MountpointS3Client", "join_all_managed_threads"]

_DEFAULTS = S3ClientConfig()


class MountpointS3Client(S3Client):
    """s3torch's client with the arguments of the native one.

    Those of a region, an endpoint and the User-Agent field are as in S3Client, the others as in S3ClientConfig.
    """

    def __init__(
        self,
        region: str,
        user_agent_prefix: str = "",
        throughput_target_gbps: float | None = _DEFAULTS.throughput_target_gbps,
        part_size: int = _DEFAULTS.part_size,
        profile: str | None = None,
        unsigned: bool = False,  # noqa: FBT001, FBT002  # the place it has in s3torchconnector
        endpoint: str | None = None,
        force_path_style: bool = False,  # noqa: FBT001, FBT002  # the place it has in s3torchconnector
        max_attempts: int = _DEFAULTS.max_attempts,
    ) -> None:
        config = S3ClientConfig(
            throughput_target_gbps=throughput_target_gbps,
            part_size=part_size,
            profile=profile,
            unsigned=unsigned,
            force_path_style=force_path_style,
            max_attempts=max_attempts,
        )
        comments = UserAgent([user_agent_prefix] if user_agent_prefix else [])
        super().__init__(region, endpoint=endpoint, user_agent=comments, s3client_config=config)

    def __new__(cls, *_arguments: object, **_keywords: object) -> Self:
        """Return it also for the arguments of one that s3torchconnector has pickled, which nothing uses."""
        return super().__new__(cls)

    throughput_target_gbps = property(attrgetter("s3client_config.throughput_target_gbps"))
    part_size = property(attrgetter("s3client_config.part_size"))
    profile = property(attrgetter("s3client_config.profile"))
    unsigned = property(attrgetter("s3client_config.unsigned"))
    force_path_style = property(attrgetter("s3client_config.force_path_style"))
    max_attempts = property(attrgetter("s3client_config.max_attempts"))

    def get_object(  # type: ignore[override]  # the native client returns a stream
        self, bucket: str, key: str, start: int | None = None, end: int | None = None
    ) -> GetObjectStream:
        """Return a stream of the bytes ``[start, end)``; what does not exist is an error of this call."""
        return self._get_object_stream(bucket, key, start, end)


def join_all_managed_threads(timeout_secs: float) -> None:
    """Do nothing: there are no threads."""
    del timeout_secs

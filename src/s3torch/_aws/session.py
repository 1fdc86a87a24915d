"""What botocore does for us: credentials, region and addresses.

botocore is imported when it is first needed: it takes a quarter of a second. What it knows without credentials is
shared by all clients (see ``configuration``); a session adds what is a client's own. It belongs to one process; a
forked child makes its own, since a lock inside botocore may have been held at the fork. ``NO_FORK`` serves as the
session's lock, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from s3torch._aws import sigv4a
from s3torch._aws.configuration import BotocoreClient, address, configuration_of
from s3torch._aws.endpoint import Endpoint, Scheme, check_endpoint_url, endpoint_of_bucket_url, needs_path_style
from s3torch._aws.sigv4 import Credentials
from s3torch._aws.tls import tls_context
from s3torch._forks import NO_FORK
from s3torch.errors import (
    ArgumentError,
    ConfigError,
    CredentialsError,
    S3Error,
)

if TYPE_CHECKING:
    import ssl

    from s3torch.config import S3ClientConfig

__all__ = ["AwsSession"]

# Signed with while the bucket's region is unknown; S3 answers with the right one.
_FALLBACK_REGION = "us-east-1"

# What the name of an access point begins with, if it is not an alias; it tells the region.
_ARN = "arn:"
_SCHEMES = {scheme.value: scheme for scheme in Scheme}

# What these say at level DEBUG shows signatures, session tokens, and credentials that were just received.
_TALKATIVE = ("botocore.auth", "botocore.endpoint", "botocore.parsers")


class _Discretion(logging.Filter):
    """Keeps secrets out of the log while botocore works for us; what others do with botocore is logged as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(self)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the calling thread's secrets inside the block."""
        before = getattr(self._thread, "is_kept", False)
        self._thread.is_kept = True
        try:
            yield
        finally:
            self._thread.is_kept = before

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        return record.levelno > logging.DEBUG or not getattr(self._thread, "is_kept", False)


_discretion = _Discretion()


class AwsSession:
    """botocore on behalf of one client in one process; may be shared by its threads.

    Args:
        config: The client's.
        region: Given by the user, or None to look it up.
        endpoint: URL given by the user, or None to look it up.
    """

    def __init__(self, config: S3ClientConfig, region: str | None, endpoint: str | None) -> None:
        with NO_FORK:
            import botocore.config
            import botocore.session  # noqa: F401  # the imports below only name what these have imported
        self._config = config
        self._region = region
        self._endpoint = endpoint
        self._source: Any = None  # a botocore credentials object, which refreshes itself
        self._credentials = Credentials("", "")
        self._tls: ssl.SSLContext | None = None

    def credentials(self) -> Credentials | None:
        """Return what to sign with now; None if requests are not to be signed.

        Raises:
            CredentialsError: None were found, or they could not be refreshed.
        """
        if self._config.unsigned:
            return None
        try:
            with NO_FORK, _discretion.kept():
                frozen = (self._source or self._find_credentials()).get_frozen_credentials()
        except _botocore_errors() as error:
            raise CredentialsError(f"The credentials could not be loaded or refreshed: {error}") from error
        current = self._credentials
        if (frozen.access_key, frozen.secret_key, frozen.token) != (
            current.access_key,
            current.secret_key,
            current.session_token,
        ):
            current = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
            _check_text_of(current)
            self._credentials = current
        return current

    def forget_credentials(self) -> None:
        """Look for credentials anew at their next use: those in use have expired or were rotated."""
        with NO_FORK:
            self._source = None

    def region(self) -> str:
        """Return the region to begin with: given, AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1."""
        found = self._region or os.environ.get("AWS_REGION")
        return found or self._variable("region") or _FALLBACK_REGION

    def endpoint(self, bucket: str, region: str) -> Endpoint:
        """Return where a bucket answers.

        Raises:
            ArgumentError: No bucket can have this name.
            ConfigError: The endpoint's URL cannot be used, or a package is missing that signs for it.
        """
        from botocore.exceptions import BotoCoreError, MissingDependencyException

        with NO_FORK:
            style = self._addressing_style(region)
            try:
                found = address(self._placeholder(region, style), bucket)
                if not found.scheme:  # SigV4 is none of the ways in which it can be signed for
                    found = address(self._placeholder(region, style, signature=None), bucket)
            except ConfigError:  # explained already
                raise
            except MissingDependencyException as error:
                raise sigv4a.missing(bucket) from error
            except (BotoCoreError, ValueError) as error:
                raise ArgumentError(
                    f"No address can be made for bucket {bucket!r} in region {region!r}: {error}", bucket=bucket
                ) from error
        if ".[" in found.url.partition("?")[0].split("/")[2]:  # an IPv6 address with a name in front is none
            raise ArgumentError(
                f"No address can be made for bucket {bucket!r}: an access point needs an endpoint with a host name, "
                f"and {found.url.removesuffix('k')!r} is none.",
                bucket=bucket,
            )
        signed_for = found.region if bucket.startswith(_ARN) else ""
        scheme = _SCHEMES.get(found.scheme, Scheme.SIGV4)
        return endpoint_of_bucket_url(found.url.removesuffix("k"), scheme, found.service, signed_for)

    def tls(self) -> ssl.SSLContext:
        """Return the context of all TLS connections: verifying, TLS 1.2 or newer, unless configured otherwise.

        Raises:
            ConfigError: The file of authorities cannot be read.
        """
        with NO_FORK:
            if self._tls is None:
                self._tls = tls_context(self._verify())
            return self._tls

    def _find_credentials(self) -> Any:  # noqa: ANN401  # of a class that botocore chooses
        with NO_FORK:
            self._source = configuration_of(self._config.profile).find_credentials(self.region())
        if self._source is None:
            raise CredentialsError(
                "No credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or attach a role to this machine; for a public bucket use S3ClientConfig(unsigned=True)."
            )
        return self._source

    def _variable(self, name: str) -> Any:  # noqa: ANN401  # of a type that the variable has
        with NO_FORK:
            return configuration_of(self._config.profile).variable(name)

    def _placeholder(self, region: str, style: str, signature: str | None = "s3v4") -> BotocoreClient:
        with self._explained(region):
            return configuration_of(self._config.profile).placeholder(region, self._endpoint, style, signature)

    @contextlib.contextmanager
    def _explained(self, region: str) -> Iterator[None]:
        """Say what is wrong when botocore can make no client inside the block."""
        try:
            yield
        except (_botocore_errors(), ValueError) as error:
            if isinstance(error, S3Error):  # that there is no such profile is explained already
                raise
            endpoint = self._endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            raise ConfigError(
                f"No client can be made for region {region!r} and endpoint {endpoint!r}: {error}. Check region=, "
                "endpoint=, AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the profile."
            ) from error

    def _addressing_style(self, region: str) -> str:
        """Return how buckets are addressed: as botocore would on AWS; on other servers virtual-hosted if possible."""
        endpoint_url = self._endpoint or self._placeholder(region, "auto").meta.endpoint_url
        check_endpoint_url(endpoint_url)
        if self._config.force_path_style or needs_path_style(endpoint_url):
            return "path"
        host = endpoint_url.partition("://")[2].partition("/")[0]
        return "auto" if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else "virtual"

    def _verify(self) -> bool | str:
        verify = self._config.verify
        if verify is not True:
            return verify if verify is False else os.fspath(verify)
        return os.environ.get("AWS_CA_BUNDLE") or self._variable("ca_bundle") or True


def _botocore_errors() -> type[Exception]:
    """Return the root of botocore's errors; evaluated only when there is one to catch."""
    from botocore.exceptions import BotoCoreError

    return BotoCoreError


def _check_text_of(credentials: Credentials) -> None:
    """Check, showing nothing of them, that credentials can be sent and signed with.

    Raises:
        CredentialsError: They cannot.
    """
    for name, value in (("access key", credentials.access_key), ("session token", credentials.session_token or "")):
        if not (value.isascii() and value.isprintable()):
            raise CredentialsError(f"The {name} cannot be sent: perhaps there is a line break in it.")
    if any("\ud800" <= character <= "\udfff" for character in credentials.secret_key):
        raise CredentialsError("The secret key is no text in UTF-8: set AWS_SECRET_ACCESS_KEY anew.")

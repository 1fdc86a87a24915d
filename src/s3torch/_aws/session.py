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
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from s3torch._aws import sigv4a
from s3torch._aws.configuration import BotocoreClient, address, configuration_of
from s3torch._aws.endpoint import Endpoint, Scheme, check_endpoint_url, endpoint_of_bucket_url
from s3torch._aws.finding import Inherited, Overload, cause_of, environment, error_of, error_text
from s3torch._aws.proxies import has_unusable_proxy, proxy_of
from s3torch._aws.quoting import hide_users
from s3torch._aws.sigv4 import Credentials
from s3torch._aws.tls import ClientCert, tls_context
from s3torch._forks import NO_FORK
from s3torch.errors import (
    ArgumentError,
    ConfigError,
    CredentialsError,
    S3Error,
)

if TYPE_CHECKING:
    import ssl

    from s3torch._transfer.connection import Origin
    from s3torch._transfer.proxy import Proxy
    from s3torch.config import S3ClientConfig

__all__ = ["AwsSession"]

# Signed with while the bucket's region is unknown; S3 answers with the right one.
_FALLBACK_REGION = "us-east-1"

# How long forks do not look for credentials again after one of them did, in seconds. Not tuned.
_LOOK_AHEAD_PAUSE = 60.0

# What the name of an access point begins with, if it is not an alias; it tells the region.
_ARN = "arn:"
_SCHEMES = {scheme.value: scheme for scheme in Scheme}

# What these say at level DEBUG shows signatures, session tokens, credentials that were just received, and proxies.
_TALKATIVE = (
    "botocore.auth",
    "botocore.endpoint",
    "botocore.httpsession",
    "botocore.parsers",
    "botocore.retries.standard",
    "botocore.retryhandler",
    "botocore.utils",
    "urllib3.connectionpool",
)
# What these say is for everybody, but not the errors beside it, which may show the URL of a proxy.
_WITH_ERRORS = ("botocore.credentials", "botocore.tokens")


class _Discretion(logging.Filter):
    """Keeps secrets out of the log while botocore works for us; what others do with botocore is logged as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()
        for name in (*_TALKATIVE, *_WITH_ERRORS):
            logging.getLogger(name).addFilter(self)

    @property
    def is_kept(self) -> bool:
        """Whether the calling thread is inside such a block."""
        return getattr(self._thread, "is_kept", False)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the calling thread's secrets inside the block."""
        before = self.is_kept
        self._thread.is_kept = True
        try:
            yield
        finally:
            self._thread.is_kept = before

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged; without the error that it has come of."""
        if not self.is_kept:
            return True
        record.exc_info = None
        return record.levelno > logging.DEBUG or record.name in _WITH_ERRORS


_discretion = _Discretion()


class AwsSession:
    """botocore on behalf of one client in one process; may be shared by its threads.

    Args:
        config: The client's.
        region: Given by the user, or None to look it up.
        endpoint: URL given by the user, or None to look it up.
        inherited: What the session of the process before a fork has found.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        config: S3ClientConfig,
        region: str | None,
        endpoint: str | None,
        inherited: Inherited | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        with NO_FORK:
            import botocore.config
            import botocore.session  # noqa: F401  # the imports below only name what these have imported
        self._config = config
        self._region = region
        self._endpoint = endpoint
        self._source: Any = None  # a botocore credentials object, which refreshes itself
        self._credentials = Credentials("", "")
        self._environment: tuple[str | None, ...] = ()
        self._inherited = inherited
        self._overload = Overload()
        self._clock = clock
        self._next_look_ahead = clock()
        self._tls: ssl.SSLContext | None = None
        self._proxies: dict[Origin, Proxy | None] = {}

    def credentials(self) -> Credentials | None:
        """Return what to sign with now; None if requests are not to be signed.

        Raises:
            CredentialsError: None were found, or they could not be refreshed.
            ConfigError: The configuration that tells where they are cannot be read.
            TransientError: What gives them out is overloaded, or fails.
        """
        if self._config.unsigned:
            return None
        if self._inherited is not None:
            inherited = self._inherited.current()
            if inherited is not None:
                return inherited
            self._inherited = None
        self._overload.check()
        try:
            with NO_FORK, _discretion.kept():
                frozen = (self._source or self._find_credentials()).get_frozen_credentials()
        except S3Error as error:
            self._overload.note(error)
            raise
        except Exception as error:  # noqa: BLE001  # whatever it was, an S3Error comes of it
            self._explain_proxy(error)
            failure = error_of(error, self._secrets())
            self._overload.note(failure)
            raise failure from cause_of(error, self._secrets())
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
            self._source = self._inherited = None

    def heritage(self) -> Inherited | None:
        """Return what a forked child of this process may sign with; None if nothing was found yet."""
        if self._source is not None and self._credentials.access_key:
            return Inherited(self._credentials, self._source, self._environment)
        return self._inherited

    def look_ahead_of_children(self) -> None:
        """Look for credentials, if a child that is forked now would have to.

        Raises:
            S3Error: None were found; a child would not find any either.
        """
        if _discretion.is_kept or self._config.unsigned:
            return  # a signal handler forks in the middle of a search: botocore's lock is this thread's
        heritage = self.heritage()
        if heritage is not None and heritage.current() is not None:
            return
        now = self._clock()
        if now < self._next_look_ahead:  # they last for seconds, or there are none: a fork is not to wait each time
            return
        self._next_look_ahead = now + _LOOK_AHEAD_PAUSE
        self.credentials()

    def _explain_proxy(self, error: Exception) -> None:
        """Raise, in place of a failed request of botocore's, that a proxy cannot be used: it may show its password.

        Raises:
            ConfigError: It cannot.
        """
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.exceptions import HTTPClientError

        chain = error, error.__cause__, error.__context__
        if any(isinstance(each, (HTTPClientError, NoConnection)) for each in chain) and has_unusable_proxy(
            self._config.proxies
        ):
            raise ConfigError(
                "The credentials could not be loaded or refreshed: a proxy that HTTP_PROXY, HTTPS_PROXY or "
                "S3ClientConfig(proxies=...) names cannot be used. Write it like 'http://user:password@host:port', "
                "with special characters percent-encoded."
            ) from None

    def _secrets(self) -> tuple[str | None, ...]:
        """Return what no message may show."""
        names = (
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_SECURITY_TOKEN",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        )
        current = self._credentials
        return (current.secret_key, current.session_token, *map(os.environ.get, names))

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
            try:
                found = address(self._placeholder(region), bucket)
                if not found.scheme:  # SigV4 is none of the ways in which it can be signed for
                    found = address(self._placeholder(region, signature=None), bucket)
            except S3Error:  # explained already
                raise
            except MissingDependencyException as error:
                raise sigv4a.missing(bucket) from error
            except (BotoCoreError, ValueError) as error:
                raise ArgumentError(
                    f"No address can be made for bucket {bucket!r} in region {region!r}: {error}", bucket=bucket
                ) from error
        if bucket.startswith(_ARN) and ".[" in found.url.split("/")[2]:  # a name in front of an IPv6 address is none
            raise ArgumentError(
                f"No address can be made for bucket {bucket!r}: an access point needs an endpoint with a host name, "
                f"and {found.url.removesuffix('k')!r} is none.",
                bucket=bucket,
            )
        signed_for = found.region if bucket.startswith(_ARN) else ""
        scheme = _SCHEMES.get(found.scheme, Scheme.SIGV4)
        return endpoint_of_bucket_url(found.url.removesuffix("k"), scheme, found.service, signed_for)

    def sends_checksums(self) -> bool:
        """Whether uploads carry checksums: as configured, and if that is the default, as botocore is told."""
        return self._has_checksums("request_checksum_calculation")

    def asks_checksums(self) -> bool:
        """Whether reads ask for checksums: as configured, and if that is the default, as botocore is told."""
        return self._has_checksums("response_checksum_validation")

    def _has_checksums(self, variable: str) -> bool:
        mode = self._config.checksums
        return mode == "strict" or (mode == "on" and str(self._variable(variable)).lower() != "when_required")

    def tls(self) -> ssl.SSLContext:
        """Return the context of all TLS connections: verifying, TLS 1.2 or newer, unless configured otherwise.

        Raises:
            ConfigError: The file of authorities cannot be read.
        """
        with NO_FORK:
            if self._tls is None:
                self._tls = tls_context(self._verify(), self._client_cert())
            return self._tls

    def proxy(self, origin: Origin) -> Proxy | None:
        """Return the proxy that leads to an origin; None if it is reached directly. It stays the same.

        Raises:
            ConfigError: The proxy's URL cannot be used.
        """
        if origin not in self._proxies:
            self._proxies[origin] = proxy_of(origin, self._config.proxies)
        return self._proxies[origin]

    def _find_credentials(self) -> Any:  # noqa: ANN401  # of a class that botocore chooses
        with NO_FORK:
            self._environment = environment()
            proxies = self._config.proxies
            options = None if proxies is None else {"proxies": proxies}
            self._source = configuration_of(self._config.profile).find_credentials(self.region(), options)
        if self._source is None:
            raise CredentialsError(
                "No credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or attach a role to this machine; for a public bucket use S3ClientConfig(unsigned=True)."
            )
        return self._source

    def _variable(self, name: str) -> Any:  # noqa: ANN401  # of a type that the variable has
        with NO_FORK, self._readable():
            return configuration_of(self._config.profile).variable(name)

    def _placeholder(self, region: str, signature: str | None = "s3v4") -> BotocoreClient:
        with self._explained(region):
            client = configuration_of(self._config.profile).placeholder(region, self._endpoint, self._style, signature)
        check_endpoint_url(client.meta.endpoint_url)  # it may come from the environment or the profile
        return client

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Say what is wrong when the configuration cannot be read inside the block."""
        try:
            yield
        except S3Error:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise ConfigError(
                f"The AWS configuration cannot be read: {error_text(error, self._secrets())}. Check AWS_CONFIG_FILE, "
                "AWS_SHARED_CREDENTIALS_FILE, AWS_PROFILE and the AWS_* variables."
            ) from cause_of(error, self._secrets())

    @contextlib.contextmanager
    def _explained(self, region: str) -> Iterator[None]:
        """Say what is wrong when botocore can make no client inside the block."""
        try:
            yield
        except S3Error:  # that there is no such profile is explained already
            raise
        except Exception as error:  # noqa: BLE001  # as above
            endpoint = self._endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            shown = None if endpoint is None else hide_users(endpoint)
            raise ConfigError(
                f"No client can be made for region {region!r} and endpoint {shown!r}: "
                f"{error_text(error, self._secrets())}. Check region=, "
                "endpoint=, AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the profile."
            ) from cause_of(error, self._secrets())

    @property
    def _style(self) -> str | None:
        """How buckets are addressed; None is as the profile says, and else as botocore does."""
        return "path" if self._config.force_path_style else None

    def _client_cert(self) -> ClientCert:
        given = self._config.client_cert
        if given is None:
            return None
        certificate, key = given if isinstance(given, tuple) else (given, None)
        return os.fspath(certificate), None if key is None else os.fspath(key)

    def _verify(self) -> bool | str:
        verify = self._config.verify
        if verify is not True:
            return verify if verify is False else os.fspath(verify)
        return os.environ.get("AWS_CA_BUNDLE") or self._variable("ca_bundle") or True


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

"""What botocore does for us: credentials, region, addresses, and copies.

botocore is imported when it is first needed: it takes a quarter of a second. What it knows without credentials is
shared by all clients (see ``configuration``); a session adds what is a client's own. It belongs to one process; a
forked child makes its own, since a lock inside botocore may have been held at the fork. ``NO_FORK`` serves as the
session's lock, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from s3torch._aws.answers import ErrorDocument, Subject, error_from_answer
from s3torch._aws.configuration import BotocoreClient, configuration_of
from s3torch._aws.endpoint import Endpoint, check_endpoint_url, endpoint_of_bucket_url
from s3torch._aws.finding import Inherited, Overload, environment, error_of, error_text
from s3torch._aws.proof import describe_root, not_s3, root_of
from s3torch._aws.proxies import proxy_of
from s3torch._aws.sigv4 import Credentials
from s3torch._aws.tls import ClientCert, named_authorities, tls_context
from s3torch._forks import NO_FORK
from s3torch.errors import (
    ArgumentError,
    CertificateError,
    ConfigError,
    ConnectionFailedError,
    CredentialsError,
    ProtocolError,
    ProxyError,
    ProxyRefusedError,
    RequestError,
    S3Error,
)

if TYPE_CHECKING:
    import ssl

    from s3torch._transfer.connection import Origin
    from s3torch._transfer.proxy import Proxy
    from s3torch.config import S3ClientConfig

__all__ = ["AwsSession"]

# What OpenSSL calls it; botocore keeps only the text.
_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"

# Signed with while the bucket's region is unknown; S3 answers with the right one.
_FALLBACK_REGION = "us-east-1"

# What these say at level DEBUG shows signatures, session tokens, and credentials that were just received.
_TALKATIVE = ("botocore.auth", "botocore.endpoint", "botocore.parsers", "botocore.utils")


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
        inherited: What the session of the process before a fork has found.
    """

    def __init__(
        self,
        config: S3ClientConfig,
        region: str | None,
        endpoint: str | None,
        inherited: Inherited | None = None,
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
        self._cold_clients: dict[str, BotocoreClient] = {}
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
        except Exception as error:
            failure = error_of(error, self._secrets())
            self._overload.note(failure)
            if failure is error:
                raise
            raise failure from error
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
            self._cold_clients.clear()

    def heritage(self) -> Inherited | None:
        """Return what a forked child of this process may sign with; None if nothing was found yet."""
        if self._source is not None and self._credentials.access_key:
            return Inherited(self._credentials, self._source, self._environment)
        return self._inherited

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

    def close(self) -> None:
        """Close the connections of calls; the next one opens others."""
        with NO_FORK:
            clients, self._cold_clients = list(self._cold_clients.values()), {}
        for client in clients:
            client.close()

    def region(self) -> str:
        """Return the region to begin with: given, AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1."""
        found = self._region or os.environ.get("AWS_REGION")
        return found or self._variable("region") or _FALLBACK_REGION

    def endpoint(self, bucket: str, region: str) -> Endpoint:
        """Return where a bucket answers.

        Raises:
            ArgumentError: No bucket can have this name.
            ConfigError: The endpoint's URL cannot be used.
        """
        from botocore.exceptions import BotoCoreError

        with NO_FORK:
            client = self._placeholder(region)
            try:
                # The host of a presigned URL is the documented way to learn it; nothing is sent.
                url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
            except (BotoCoreError, ValueError) as error:
                raise ArgumentError(
                    f"No address can be made for bucket {bucket!r} in region {region!r}: {error}", bucket=bucket
                ) from error
        return endpoint_of_bucket_url(url.partition("?")[0].removesuffix("k"))

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

    def call(self, subject: Subject, region: str, method: str, **parameters: object) -> dict[str, Any]:
        """Make a call through botocore.

        Args:
            subject: For the error's sentence.
            region: The bucket's.
            method: Name of the botocore client's method.
            parameters: Its parameters.

        Raises:
            S3Error: As for requests of our own.
        """
        from botocore.exceptions import (
            ClientError,
            ConnectionError,  # noqa: A004  # botocore's own
            HTTPClientError,
            NoCredentialsError,
            ProxyConnectionError,
            SSLError,
        )
        from botocore.parsers import ResponseParserError

        try:
            self.credentials()  # refused here if they cannot be sent: botocore would show them
            with NO_FORK:
                client = self._cold_client(region)
            with _discretion.kept():
                answer: dict[str, Any] = getattr(client, method)(**parameters)
        except ClientError as error:
            failure = _from_client_error(subject, error.response)
            raise _refusal_of_proxy(subject, failure.status) if failure.status == 407 else failure from error
        except NoCredentialsError as error:
            raise CredentialsError(
                f"No credentials were found for {subject.operation} on {subject}. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            ) from error
        except (HTTPClientError, ConnectionError) as error:
            if isinstance(error, SSLError) and _CERTIFICATE in str(error):
                raise CertificateError(
                    f"{subject.operation} on {subject} failed: the certificate of {subject.where} is not valid for it. "
                    "If the server's authority is your own, name its PEM file in AWS_CA_BUNDLE or "
                    "S3ClientConfig(verify=...).",
                    bucket=subject.bucket,
                    key=subject.key,
                ) from error
            refused = re.search(r"Tunnel connection failed: (4\d\d)", str(error.kwargs.get("error")))
            if refused is not None:
                raise _refusal_of_proxy(subject, int(refused[1])) from error
            kind = ProxyError if isinstance(error, ProxyConnectionError) else ConnectionFailedError
            raise kind(
                f"{subject.operation} on {subject} failed at {subject.where}: {error}",
                bucket=subject.bucket,
                key=subject.key,
            ) from error
        except ProtocolError as error:
            raise not_s3(subject, 200, {}, str(error)) from None
        except ResponseParserError as error:
            raise not_s3(subject, 200, {}, "by something else than XML") from error
        except S3Error:
            raise
        except Exception as error:  # botocore's own, and what its parts do not translate
            raise RequestError(
                f"{subject.operation} on {subject} failed: {error}", bucket=subject.bucket, key=subject.key
            ) from error
        return answer

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

    def _placeholder(self, region: str) -> BotocoreClient:
        with self._explained(region):
            client = configuration_of(self._config.profile).placeholder(region, self._endpoint, self._style)
        check_endpoint_url(client.meta.endpoint_url)  # it may come from the environment or the profile
        return client

    def _cold_client(self, region: str) -> BotocoreClient:
        client = self._cold_clients.get(region)
        if client is None:
            client = self._cold_clients[region] = self._new_client(region)
        return client

    def _new_client(self, region: str) -> BotocoreClient:
        from botocore import UNSIGNED
        from botocore.config import Config

        options: dict[str, Any] = {
            "signature_version": UNSIGNED if self._config.unsigned else "s3v4",
            "s3": {"addressing_style": self._style} if self._style is not None else None,
            "connect_timeout": self._config.connect_timeout,
            "read_timeout": self._config.first_byte_timeout,
            "retries": {"mode": "standard", "total_max_attempts": self._config.max_attempts},
            # Not every S3-compatible server knows the newer checksums.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "proxies": self._config.proxies,
        }
        if (client_cert := self._client_cert()) is not None:
            options["client_cert"] = client_cert[0] if client_cert[1] is None else client_cert
        source = None if self._config.unsigned else self._source or self._find_credentials()
        with self._explained(region):
            client = configuration_of(self._config.profile).new_client(
                source,
                region_name=region,
                endpoint_url=self._endpoint,
                verify=self._verify_of_botocore(),
                config=Config(**options),
            )
        client.meta.events.register("before-call.s3.HeadBucket", _refuse_head_bucket)
        client.meta.events.register_first("needs-retry.s3", _refuse_certificate)
        client.meta.events.register("before-parse.s3", _refuse_other_document)
        return client

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Say what is wrong when the configuration cannot be read inside the block."""
        try:
            yield
        except S3Error:
            raise
        except Exception as error:
            raise ConfigError(
                f"The AWS configuration cannot be read: {error_text(error, self._secrets())}. Check AWS_CONFIG_FILE, "
                "AWS_SHARED_CREDENTIALS_FILE, AWS_PROFILE and the AWS_* variables."
            ) from error

    @contextlib.contextmanager
    def _explained(self, region: str) -> Iterator[None]:
        """Say what is wrong when botocore can make no client inside the block."""
        try:
            yield
        except S3Error:  # that there is no such profile is explained already
            raise
        except Exception as error:
            endpoint = self._endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            raise ConfigError(
                f"No client can be made for region {region!r} and endpoint {endpoint!r}: "
                f"{error_text(error, self._secrets())}. Check region=, "
                "endpoint=, AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the profile."
            ) from error

    @property
    def _style(self) -> str | None:
        """How buckets are addressed; None is as the profile says, and else as botocore does."""
        return "path" if self._config.force_path_style else None

    def _verify_of_botocore(self) -> bool | str:
        """Return what the connections of calls trust: botocore itself would not look at SSL_CERT_FILE."""
        verify = self._verify()
        return named_authorities() or True if verify is True else verify

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


def _refuse_head_bucket(**_: object) -> None:
    """Refuse what botocore asks when a redirect does not tell the region: it does so again for that answer, for ever.

    Raises:
        ClientError: Always; botocore then gives up with the first answer's error.
    """
    from botocore.exceptions import ClientError

    raise ClientError({"Error": {}, "ResponseMetadata": {"HTTPHeaders": {}}}, "HeadBucket")  # type: ignore[typeddict-item]  # all that is read


def _refuse_certificate(caught_exception: Exception | None = None, **_: object) -> None:
    """Raise what is wrong with a certificate at once: another attempt would meet the same."""
    if caught_exception is not None and _CERTIFICATE in str(caught_exception):
        raise caught_exception


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


# What the root elements of what is called end with; some servers shorten ListMultipartUploadsResult. Of a document with
# another one botocore finds nothing, and says nothing.
_ROOTS = {"CopyObject": "CopyObjectResult", "ListMultipartUploads": "UploadsResult", "ListParts": "PartsResult"}


def _refuse_other_document(operation_model: Any, response_dict: Mapping[str, Any], **_: object) -> None:  # noqa: ANN401  # botocore's
    """Refuse a success whose document is not S3's.

    Raises:
        ProtocolError: It is not; the message says what is wrong only.
    """
    root, body = _ROOTS.get(operation_model.name), response_dict["body"]
    if root is not None and response_dict["status_code"] < 300 and not root_of(body).endswith((root, "Error")):
        raise ProtocolError(f"by {describe_root(body)} where a document {root} is due")


def _refusal_of_proxy(subject: Subject, status: int | None) -> S3Error:
    """Return the error of a proxy that does not lead to the service."""
    return ProxyRefusedError(
        f"{subject.operation} on {subject} failed: the proxy does not lead to {subject.where}. Check HTTPS_PROXY, "
        "HTTP_PROXY and NO_PROXY, or S3ClientConfig(proxies=...), and user and password there.",
        bucket=subject.bucket,
        key=subject.key,
        status=status,
    )


def _from_client_error(subject: Subject, response: Mapping[str, Any]) -> S3Error:
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    document = ErrorDocument(
        code=str(error.get("Code", "")),
        message=str(error.get("Message", "")),
        request_id=str(metadata.get("RequestId", "")),
        region=str(error.get("Region", "")),
    )
    failure = error_from_answer(
        subject, int(metadata.get("HTTPStatusCode", 0)), metadata.get("HTTPHeaders", {}), document
    )
    failure.attempts = int(metadata.get("RetryAttempts", 0)) + 1
    return failure

"""Everything that s3torch raises, as one tree.

Each class is named by what the caller can do about it::

    S3Error
    ├── ArgumentError (ValueError)            fix the call
    │   ├── ArgumentTypeError (TypeError)     fix the type of an argument
    │   ├── ConfigError                       fix the configuration
    │   ├── InvalidURIError                   fix the s3:// URI
    │   ├── CheckpointFormatError             the file is no checkpoint of this format, or damaged: save it anew
    │   ├── LoaderStateError                  the state is of other data, or damaged: resume what it was saved of
    │   ├── EmptyDatasetError                 there is no object: fix the prefix or the filter
    │   ├── SampleLayoutError                 the objects do not make the samples that were asked for: fix either
    │   ├── ManifestError                     a line of a manifest is none of an object, or it is damaged: mend the file
    │   ├── ObjectTableError                  the file is no saved table of objects, or damaged: save it anew
    │   └── ClosedError                       the reader or writer is closed: make a new one
    ├── NotFoundError (FileNotFoundError)
    │   ├── ObjectNotFoundError               no such key (or version)
    │   └── BucketNotFoundError               no such bucket
    ├── AccessDeniedError (PermissionError)   ask for the permission that is missing
    ├── CredentialsError                      find, fix or refresh the credentials
    ├── CertificateError                      trust the server's certificate authority, or fix the host name
    ├── RegionError                           use the bucket's region
    ├── ClockSkewError                        set this machine's clock
    ├── ObjectExistsError (FileExistsError)   the object is there already, and was not to be replaced
    ├── ObjectChangedError                    the object was replaced while it was read: begin again
    ├── ConcurrentUseError (RuntimeError)     two threads use one reader, writer or iterator: give each its own
    ├── BadSamplesError                       too many samples cannot be made: mend the data, or permit more
    ├── UnverifiedError                       nothing proves what was read: store a checksum, or ask for no proof
    ├── ProxyRefusedError (ConnectionError)   give the proxy a password, or change its rules
    ├── RequestError                          the service refused the request for good
    └── TransientError                        worth another attempt; s3torch has made its own already
        ├── ConnectionFailedError (ConnectionError)
        │   └── ProxyError                    the proxy cannot be reached, or cannot reach the server
        ├── DeadlineError (TimeoutError)      no connection, no first byte or no progress in time
        ├── TruncatedBodyError                the connection ended before the body did
        ├── ProtocolError                     the answer is not HTTP or not what was asked
        ├── IntegrityError                    a checksum does not fit: bytes were damaged on their way
        ├── ServerError                       a 5xx status
        └── ThrottledError                    503 SlowDown, 429: send fewer requests

An error is built from a sentence plus fields. No field is positional, so that torch can rebuild an error that a
DataLoader worker raised (it calls ``type(error)(message)``), and pickling keeps the fields.
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "ArgumentError",
    "ArgumentTypeError",
    "BadSamplesError",
    "BucketNotFoundError",
    "CertificateError",
    "CheckpointFormatError",
    "ClockSkewError",
    "ClosedError",
    "ConcurrentUseError",
    "ConfigError",
    "ConnectionFailedError",
    "CredentialsError",
    "DeadlineError",
    "EmptyDatasetError",
    "IntegrityError",
    "InvalidURIError",
    "LoaderStateError",
    "ManifestError",
    "NotFoundError",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "ObjectTableError",
    "ProtocolError",
    "ProxyError",
    "ProxyRefusedError",
    "RegionError",
    "RequestError",
    "S3Error",
    "SampleLayoutError",
    "ServerError",
    "ThrottledError",
    "TransientError",
    "TruncatedBodyError",
    "UnverifiedError",
]


class S3Error(Exception):
    """The root of everything that s3torch raises.

    Args:
        args: One or two sentences: what happened, to what, and what to do. Like any exception, it takes none and
            more as well.
        bucket: The bucket of the request, where there was one.
        key: The object's key, where there was one.
        status: The HTTP status, where an answer came.
        code: The S3 error code, such as ``NoSuchKey``, where the answer carried one.
        request_id: The service's id of the request, for its support.
        region: The bucket's region, where the answer told it.
        attempts: How often the request was sent.
        retry_after: Seconds for which the service asked to be left alone, where it did.
    """

    def __init__(
        self,
        *args: object,
        bucket: str | None = None,
        key: str | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        region: str | None = None,
        attempts: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        Exception.__init__(self, *args)  # OSError, which some derive from, would take a second for a strerror
        self.bucket = bucket
        self.key = key
        self.status = status
        self.code = code
        self.request_id = request_id
        self.region = region
        self.attempts = attempts
        self.retry_after = retry_after

    def __str__(self) -> str:
        sentence = Exception.__str__(self)
        facts = [
            f"{name} {value}"
            for name, value in (
                ("status", self.status),
                ("code", self.code),
                ("request id", self.request_id),
                ("attempts", self.attempts),
            )
            if value is not None
        ]
        return f"{sentence} ({', '.join(facts)})" if facts else sentence


class ArgumentError(S3Error, ValueError):
    """An argument has a value that cannot work."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has the wrong type."""


class ConfigError(ArgumentError):
    """A field of a configuration has a value that cannot work, or a named profile does not exist."""


class InvalidURIError(ArgumentError):
    """A string is not of the form ``s3://bucket/key``."""


class CheckpointFormatError(ArgumentError):
    """A file is no checkpoint of the format that it is read as, is cut off or damaged, or is of a newer version."""


class LoaderStateError(ArgumentError):
    """A state of an S3DataLoader is of other data or of another order, is damaged, or was saved by a newer version."""


class EmptyDatasetError(ArgumentError):
    """A dataset has no object: nothing is under its prefix, or its filter leaves nothing."""


class SampleLayoutError(ArgumentError):
    """The objects of a dataset do not make the samples that were asked for.

    An object is missing, there twice, or in no class; or a class has no sample.
    """


class ManifestError(ArgumentError):
    """A file that names objects has a line that names none, is cut off or damaged, or of a format that is not known."""


class ObjectTableError(ArgumentError):
    """A file is no saved table of objects, is cut off, damaged or gone, or was saved by a newer version."""


class ClosedError(ArgumentError):
    """A reader or writer was used after it was closed."""


class NotFoundError(S3Error, FileNotFoundError):
    """The service says that the bucket or the object does not exist."""


class ObjectNotFoundError(NotFoundError):
    """The bucket has no object of this key (or version)."""


class BucketNotFoundError(NotFoundError):
    """There is no bucket of this name."""


class AccessDeniedError(S3Error, PermissionError):
    """The credentials are valid but do not permit this request."""


class CredentialsError(S3Error):
    """No credentials were found, or the service does not accept them."""


class CertificateError(S3Error):
    """The server's TLS certificate is not trusted, expired, or of another host; or it does not accept the client's."""


class RegionError(S3Error):
    """The bucket lies in another region than the one that signed the request."""


class ClockSkewError(S3Error):
    """This machine's clock differs from the service's by more than signatures allow (15 minutes)."""


class ObjectExistsError(S3Error, FileExistsError):
    """The object is there already, and ``if_none_match`` asked not to replace it."""


class ObjectChangedError(S3Error):
    """The object was replaced, or its size changed, while it was being read."""


class ConcurrentUseError(S3Error, RuntimeError):
    """Two threads, or a thread and its signal handler, use one reader, writer or iterator at the same time.

    The call that came second has changed nothing.
    """


class BadSamplesError(S3Error):
    """More samples of a dataset cannot be made than its ``on_error`` permits to skip."""


class UnverifiedError(S3Error):
    """``checksums="strict"`` was asked for, and the object has no checksum that can be compared with its bytes."""


class ProxyRefusedError(S3Error, ConnectionError):
    """The proxy does not lead to the server: it wants a password (status 407), or has a rule against it.

    Another attempt would meet the same, and might lock the user out.
    """


class RequestError(S3Error):
    """The service refused the request and would refuse it again."""


class TransientError(S3Error):
    """A fault that another attempt may not meet; raised when the permitted attempts are used up."""


class ConnectionFailedError(TransientError, ConnectionError):
    """No connection could be made, or it broke before an answer came."""


class ProxyError(ConnectionFailedError):
    """The proxy could not be reached, did not answer, or could not reach the server."""


class DeadlineError(TransientError, TimeoutError):
    """Connecting, the first byte of the answer, or progress took longer than configured."""


class TruncatedBodyError(TransientError):
    """The connection ended before the announced length had arrived."""


class ProtocolError(TransientError):
    """What arrived is not HTTP/1.1, or does not answer the request that was sent."""


class IntegrityError(TransientError):
    """What was read or sent has another checksum at the other end: bytes were damaged on their way."""


class ServerError(TransientError):
    """The service failed with a status of 500 or above."""


class ThrottledError(TransientError):
    """The service asks for fewer requests (503 SlowDown, 429)."""

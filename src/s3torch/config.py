"""What can be set: the client's behaviour and the choice of a reader. Sizes are bytes, times are seconds."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Literal

from s3torch.errors import ArgumentTypeError, ConfigError

__all__ = ["MOST_BYTES_IN_FLIGHT", "MOST_CONNECTIONS", "ReaderType", "S3ClientConfig", "S3ReaderConfig"]

MiB = 1024 * 1024
GiB = 1024 * MiB

# Amazon S3 limits a part of a multipart upload to 5 MiB .. 5 GiB
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
_MIN_PART_SIZE = 5 * MiB
_MAX_PART_SIZE = 5 * GiB

_CHECKSUMS = ("on", "off", "strict")

# The adaptive reader's smallest fetch, and what it reads ahead at most unless told otherwise: eight parts. Not tuned.
_MIN_WINDOW = 16 * 1024
_MAX_WINDOW = 64 * MiB

# Of one thread, unless the user says otherwise or processes share their node (_access/node.py). Not tuned.
MOST_CONNECTIONS = 128
MOST_BYTES_IN_FLIGHT = 256 * MiB

# One connection to S3 carries about 85 MB/s (AWS's performance guide); 80 leaves room for its latency.
_BYTES_PER_SECOND_OF_A_CONNECTION = 80e6


@dataclass(frozen=True)
class S3ClientConfig:
    """How a client talks to S3. Frozen; every value is checked when it is made.

    Args:
        throughput_target_gbps: Gigabits per second to aim at: no more connections are opened than that takes. None
            (default): as many as ``max_connections``.
        part_size: Bytes of one request of a large read, and of one part of a large upload (5 MiB to 5 GiB). A read
            that is alone is spread over more connections, in parts from 4 MiB on.
        unsigned: Send no credentials: for public buckets.
        force_path_style: Address ``host/bucket/key``, whatever the profile says. False (default) does as botocore: the
            profile's ``addressing_style`` in its section ``s3`` decides (``path``, ``virtual`` or ``auto``); without it
            an endpoint that is given is addressed as ``host/bucket/key``, and AWS as ``bucket.host/key``.
        max_attempts: How often a request is sent before its error is raised (1 or more).
        profile: Name of a profile in the AWS configuration files.
        requester_pays: Agree to pay for requests to requester-pays buckets.
        max_connections: Connections that one thread of this process keeps open at most. None (default): 128, and less
            where the processes of a node share it: the DataLoader workers of all ranks of a node (torchrun's
            ``LOCAL_WORLD_SIZE``) keep 256 open together, but each 16.
        max_bytes_in_flight: Bytes of answers that one thread waits for at the same time, at most; a single larger
            request is sent alone. None (default): 256 MiB, and less where the processes of a node share it: together
            they wait for 1 GiB, and for an eighth of the memory that their container may use, but each for 16 MiB.
        max_objects_ahead: Objects that a dataset fetches at the same time at most, within ``max_bytes_in_flight``:
            those of a batch, or those that come next in a stream. 1 fetches each object when it is its turn.
        connect_timeout: Seconds to establish a connection, TLS included.
        first_byte_timeout: Seconds from the end of the request to the first byte of the answer.
        stall_timeout: Seconds within which a transfer must move at least 1 KiB per second of them.
        call_timeout: Seconds that a call may wait for its transfers, retries included, before it raises DeadlineError:
            a read, a page of a listing, a part of an upload. Time in which nobody waits does not count. None (default)
            sets no limit; a fault then ends with ``max_attempts``.
        max_threads: Threads that one read is spread over at most, the caller's included, while the caller waits for it.
            That is done from 64 MiB on, as long as there are cores (a container's limit of CPU time counts), over TLS
            and into memory that the kernel has not backed yet; not in the workers of a DataLoader. Each has connections
            of its own. 1: none is ever started.
        hedging: Whether a read whose first byte is late, by what this host showed lately, or whose body has stopped,
            is sent a second time on another connection, 2 % of the requests at most. The first to answer wins.
        checksums: What is done against damaged bytes. ``on`` (default): uploads carry a CRC32, which the server
            verifies and stores; an object that one request reads whole is compared with the checksum that it is stored
            with, if the answer has one and its algorithm is installed (CRC32, SHA-1, SHA-256, SHA-512, MD5; with the
            extra ``checksums`` CRC32C, CRC64NVME, XXHASH3, XXHASH64 and XXHASH128). ``strict``: whatever is read whole
            is verified, large objects in parallel parts too, by a HEAD request more where no answer had the checksum;
            without one it is an UnverifiedError. What was uploaded in parts with checksums of these (COMPOSITE) is
            verified part by part, and so are those parts of an upload that a range has whole, if the server lists them;
            the rest of a range cannot be. Damaged parts alone are fetched again. Loads of checkpoints verify all that
            they return, or raise an UnverifiedError. ``off``: nothing is asked for or sent.
            ``AWS_REQUEST_CHECKSUM_CALCULATION=when_required`` (no upload carries a checksum) and
            ``AWS_RESPONSE_CHECKSUM_VALIDATION=when_required`` (no read asks for one), or the same settings of the
            profile, count with ``on`` only.
        sse_customer_key_file: The path of a file with the key of SSE-C, by which S3 encrypts what is written and
            decrypts what is read: 32 bytes, or their base64. A path and not the key, so that no pickle of a client or a
            dataset holds it: each process reads the file. It is sent over https alone (and on this machine, without a
            proxy). ETags are no MD5s then.
        verify: Whether TLS certificates are checked, or the path of a PEM file with the authorities to trust. True
            uses ``AWS_CA_BUNDLE``, the profile's ``ca_bundle`` or the system's authorities.
        client_cert: What the client shows of itself to servers that ask for a certificate: the path of a PEM file with
            certificate and key, or the paths of both. The key must not be encrypted.
        proxies: URLs of HTTP proxies by the scheme of the endpoint, such as ``{"https": "http://user:password@host:3128"}``;
            one that is not named is reached directly. None (default) uses ``HTTP_PROXY``, ``HTTPS_PROXY`` and
            ``NO_PROXY`` as botocore does, and ``NO_PROXY`` may hold networks, such as ``10.0.0.0/8``. ``{}`` uses none.

    Raises:
        ConfigError: A value is out of range, or two contradict each other.
        ArgumentTypeError: A value has the wrong type.
    """

    throughput_target_gbps: float | None = None
    part_size: int = 8 * MiB
    unsigned: bool = False
    force_path_style: bool = False
    max_attempts: int = 10
    profile: str | None = None
    requester_pays: bool = False
    _: KW_ONLY
    max_connections: int | None = None
    max_bytes_in_flight: int | None = None
    max_objects_ahead: int = 128
    max_threads: int = 4
    connect_timeout: float = 10.0
    first_byte_timeout: float = 30.0
    stall_timeout: float = 20.0
    call_timeout: float | None = None
    hedging: bool = True
    checksums: Literal["on", "off", "strict"] = "on"
    verify: bool | str | os.PathLike[str] = True
    client_cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None
    proxies: Mapping[str, str] | None = field(default=None, repr=False, hash=False)  # there may be passwords in it
    sse_customer_key_file: str | os.PathLike[str] | None = field(default=None, repr=False)  # it may be the key itself

    def __post_init__(self) -> None:
        for name in ("unsigned", "force_path_style", "requester_pays", "hedging"):
            _require_type(self, name, bool)
        if self.profile is not None:
            _require_type(self, "profile", str)
        if not isinstance(self.verify, (bool, str, os.PathLike)):
            raise ArgumentTypeError(
                f"S3ClientConfig(verify=...) must be a bool or the path of a PEM file, got {self.verify!r}."
            )
        self._check_client_cert()
        self._check_proxies()
        if self.sse_customer_key_file is not None and not isinstance(self.sse_customer_key_file, (str, os.PathLike)):
            raise ArgumentTypeError(  # and is not shown: it may be the key itself
                "S3ClientConfig(sse_customer_key_file=...) must be the path of a file that holds the key, got "
                f"{type(self.sse_customer_key_file).__name__}."
            )
        _require_type(self, "checksums", str)
        if self.checksums not in _CHECKSUMS:
            raise ConfigError(f"S3ClientConfig(checksums={self.checksums!r}) must be one of {', '.join(_CHECKSUMS)}.")
        _require_int(self, "part_size", _MIN_PART_SIZE, _MAX_PART_SIZE)
        _require_int(self, "max_attempts", 1, 1000)
        if self.max_connections is not None:
            _require_int(self, "max_connections", 1, 10_000)
        if self.max_bytes_in_flight is not None:
            _require_int(self, "max_bytes_in_flight", MiB, None)
        _require_int(self, "max_objects_ahead", 1, 100_000)
        _require_int(self, "max_threads", 1, 1000)
        for name in ("connect_timeout", "first_byte_timeout", "stall_timeout"):
            _require_positive(self, name)
        for name in ("throughput_target_gbps", "call_timeout"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        if self.unsigned and self.requester_pays:
            raise ConfigError(
                "S3ClientConfig(unsigned=True, requester_pays=True) cannot work: "
                "whoever pays for a request must sign it. Drop one of the two."
            )

    def _check_client_cert(self) -> None:
        given: object = self.client_cert
        paths = given if isinstance(given, tuple) else (given,)
        if given is not None and not (
            1 <= len(paths) <= 2 and all(isinstance(path, (str, os.PathLike)) for path in paths)
        ):
            raise ArgumentTypeError(
                "S3ClientConfig(client_cert=...) must be the path of a PEM file, or those of certificate and key, "
                f"got {given!r}."
            )

    def _check_proxies(self) -> None:
        """Check the proxies, and keep a copy; no message shows a URL, in which a password may be."""
        given: object = self.proxies
        if given is None:
            return
        if not isinstance(given, Mapping) or not all(isinstance(each, str) for each in (*given, *given.values())):
            raise ArgumentTypeError("S3ClientConfig(proxies=...) must be a mapping of schemes to URLs.")
        if unknown := set(given) - {"http", "https"}:
            raise ConfigError(
                f"S3ClientConfig(proxies=...) has {len(unknown)} for other schemes than 'http' and 'https', which are "
                'those of endpoints. Write {"https": "http://host:port"}.'
            )
        object.__setattr__(self, "proxies", dict(given))

    @property
    def connections(self) -> int:
        """How many connections one thread may have open, of a process that has its node for itself."""
        return self.connections_of(MOST_CONNECTIONS)

    @property
    def bytes_in_flight(self) -> int:
        """How many bytes one thread may wait for, of a process that has its node for itself."""
        return MOST_BYTES_IN_FLIGHT if self.max_bytes_in_flight is None else self.max_bytes_in_flight

    def connections_of(self, most: int) -> int:
        """Return how many connections one thread may have open.

        Args:
            most: How many, unless ``max_connections`` says it.
        """
        most = most if self.max_connections is None else self.max_connections
        if self.throughput_target_gbps is None:
            return most
        needed = self.throughput_target_gbps * 1e9 / 8 / _BYTES_PER_SECOND_OF_A_CONNECTION
        return math.ceil(min(most, needed))


class ReaderType(Enum):
    """Which reader opens an object."""

    SEQUENTIAL = "sequential"
    RANGE_BASED = "range_based"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class S3ReaderConfig:
    """Which reader opens an object, and how it behaves.

    Choose ``sequential()`` (the default) when most of each object is read, ``range_based()`` when only parts of large
    objects are and it is known which, and ``adaptive()`` when that depends on the file or on the library that reads it.

    Args:
        reader_type: The reader's kind.
        buffer_size: For the range-based reader: see :meth:`range_based`.
        max_window: For the adaptive reader: see :meth:`adaptive`. None is 64 MiB.

    Raises:
        ArgumentTypeError: ``reader_type`` is no ReaderType, or another value no integer.
        ConfigError: ``buffer_size`` is negative, ``max_window`` is less than 16 KiB, or one of them was given for a
            reader that has none.
    """

    reader_type: ReaderType = ReaderType.SEQUENTIAL
    buffer_size: int | None = None
    max_window: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.reader_type, ReaderType):
            raise ArgumentTypeError(
                f"S3ReaderConfig(reader_type=...) must be a ReaderType, got {self.reader_type!r}. "
                "Use S3ReaderConfig.sequential(), .range_based() or .adaptive()."
            )
        self._check_size("buffer_size", 0, ReaderType.RANGE_BASED)
        self._check_size("max_window", _MIN_WINDOW, ReaderType.ADAPTIVE)

    @classmethod
    def sequential(cls) -> S3ReaderConfig:
        """Fetch the object forwards in parallel parts and keep it: re-reading and seeking back cost nothing."""
        return cls(ReaderType.SEQUENTIAL)

    @classmethod
    def range_based(cls, buffer_size: int | None = None) -> S3ReaderConfig:
        """Fetch exactly the bytes that each read asks for.

        Args:
            buffer_size: None or 0: each read is one request (or several parallel ones if it is large) of exactly its
                bytes, and nothing is kept. n > 0: a read of fewer than n bytes fetches n and keeps them, which serves
                a run of small reads.
        """
        return cls(ReaderType.RANGE_BASED, buffer_size)

    @classmethod
    def adaptive(cls, max_window: int = _MAX_WINDOW) -> S3ReaderConfig:
        """Begin like ``range_based``, fetch ahead where reads follow each other, and keep the object's head and tail.

        For each byte that is read at most one is fetched that nobody asked for, and 64 KiB beside; an object of at
        most 512 KiB is fetched whole when it is touched a second time.

        Args:
            max_window: Bytes that one reader fetches ahead at most, 16 KiB or more. All adaptive readers of a process
                together hold 256 MiB at most.
        """
        return cls(ReaderType.ADAPTIVE, max_window=max_window)

    @property
    def window_limit(self) -> int:
        """Bytes that an adaptive reader fetches ahead at most."""
        return _MAX_WINDOW if self.max_window is None else self.max_window

    def get_reader_type_string(self) -> str:
        """Return the name of the reader's kind, as it stands in the user agent."""
        return self.reader_type.value

    def _check_size(self, name: str, low: int, owner: ReaderType) -> None:
        value = getattr(self, name)
        if value is None:
            return
        _require_int(self, name, low, None)
        if self.reader_type is not owner:
            article = "An" if self.reader_type is ReaderType.ADAPTIVE else "A"
            raise ConfigError(f"{article} {self.reader_type.value} reader has no {name}; drop {name}={value}.")


def _require_type(config: object, name: str, expected: type) -> None:
    value = getattr(config, name)
    if not isinstance(value, expected):
        raise ArgumentTypeError(f"{type(config).__name__}({name}=...) must be a {expected.__name__}, got {value!r}.")


def _require_int(config: object, name: str, low: int, high: int | None) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{type(config).__name__}({name}=...) must be an int, got {value!r}.")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{type(config).__name__}({name}={value}) is out of range: it must be {bounds}.")


def _require_positive(config: object, name: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{type(config).__name__}({name}=...) must be a number, got {value!r}.")
    if not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{type(config).__name__}({name}={value}) must be a finite number above 0.")

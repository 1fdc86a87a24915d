"""One bucket as a client sees it: where it answers, which region signs for it, and with whose credentials."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from s3torch._aws import sigv4
from s3torch._aws.answers import parse_http_date
from s3torch._aws.customer_key import check_may_carry_key
from s3torch._aws.endpoint import Endpoint, Scheme
from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials, Signer
from s3torch._aws.sigv4a import REGION_SET, AsymmetricSigner
from s3torch._log import LOG
from s3torch._transfer.http1 import build_head, format_fields
from s3torch._transfer.proxy import Proxy
from s3torch.errors import ArgumentError, ClockSkewError, CredentialsError, RegionError, S3Error

__all__ = ["Bucket", "Place"]

_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}
# So many secrets that were sent lately are in no message: an answer may come after the token was replaced.
_TOLD = 4
# S3 refuses signatures that are more than 15 minutes off; below that a Date field proves nothing.
_TOLERATED_SKEW = 5 * 60.0
_NO_FIELDS: Mapping[str, str] = {}
_REGION = re.compile(r"[a-z0-9-]{1,63}")


class Place(NamedTuple):
    """Where an attempt goes, and what signs it. They are corrected together, so an attempt never mixes two of them.

    Args:
        endpoint: Where the bucket answers, and how requests there are signed.
        region: In use.
        corrections: How often something was corrected before.
    """

    endpoint: Endpoint
    region: str
    corrections: int

    @property
    def signing_region(self) -> str:
        """The region that signs: the one that the bucket's name tells, or the one in use."""
        return self.endpoint.region or self.region


@dataclass(repr=False, eq=False, slots=True)
class _CommonLines:
    """The header lines that many requests share.

    Attributes:
        key: What they depend on: the place, the second, the body's digest, and the operation's own fields.
        before_path: What a proxy wants before the path (the absolute form, RFC 9112 3.2.2); mostly nothing.
        lines: The lines; with a signer they stop before the signature.
        signer: None if requests are not signed.
    """

    key: tuple[Place, int, str, Mapping[str, str]]
    before_path: str
    lines: str
    signer: Signer | AsymmetricSigner | None

    def complete(self, method: str, path: str, query: str) -> str:
        """Return the lines of one request."""
        if self.signer is None:
            return self.lines
        return f"{self.lines}{self.signer.signature(method, path, query)}\r\n"


class Bucket:
    """Makes signed requests for one bucket, and corrects what the service says is wrong with them.

    Args:
        name: The bucket's.
        session: Returns the session of this process.
        user_agent: The User-Agent field.
        requester_pays: Whether to agree to pay.
        has_checksums: Whether checksums are asked for.
        sends_checksums: Whether checksums are sent.
        customer_key: Header fields of SSE-C; empty if it is not used.
        clock: Seconds since the epoch.

    Attributes:
        name: The bucket's.
        place: Where it answers, and what signs. What was corrected is another one.
        access_key: Of the credentials that requests are signed with; None until one was, and if they are not signed.
        has_checksums: Whether checksums are asked for.
        sends_checksums: Whether checksums are sent.
        customer_key: Header fields of SSE-C; empty if it is not used.
        lists_parts: Whether GetObjectAttributes may be asked for: False once it was refused.

    Raises:
        ArgumentError: The name is empty or cannot be addressed.
        ConfigError: There is a key of SSE-C, which may not be sent there.
    """

    _session_field = "x-amz-security-token"

    def __init__(
        self,
        name: str,
        session: Callable[[], AwsSession],
        user_agent: str,
        *,
        requester_pays: bool = False,
        has_checksums: bool = False,
        sends_checksums: bool = False,
        customer_key: Mapping[str, str] = _NO_FIELDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not name:
            raise ArgumentError("Bucket name must be non-empty: write 's3://bucket/key' or pass bucket='...'.")
        self.name = name
        self.has_checksums = has_checksums
        self.sends_checksums = sends_checksums
        self.lists_parts = True
        region = session().region()
        self.place = Place(session().endpoint(name, region), region, 0)
        if customer_key:
            check_may_carry_key(self.place.endpoint.origin, session().proxy(self.place.endpoint.origin))
        self.customer_key = customer_key
        self._session = session
        # Without it a gateway may compress, and what arrives is no range of the object any more.
        self._unsigned = {"user-agent": user_agent, "accept-encoding": "identity"}
        self._requester_pays = requester_pays
        self._clock = clock
        self._clock_offset = 0.0
        self._common: _CommonLines | None = None
        self._told: tuple[str, ...] = ()  # replaced, never changed: threads share it
        self.access_key: str | None = None

    def __repr__(self) -> str:
        return f"<Bucket {self.name!r} at {self.endpoint.origin} in {self.region}>"

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return self.place.endpoint

    @property
    def region(self) -> str:
        """The region in use; see ``Place.signing_region``."""
        return self.place.region

    @property
    def corrections(self) -> int:
        """How often something was corrected."""
        return self.place.corrections

    @property
    def proxy(self) -> Proxy | None:
        """The proxy that leads to the bucket; None if it is reached directly."""
        return self._session().proxy(self.endpoint.origin)

    @property
    def plain(self) -> Bucket:
        """What signs with the user's credentials, and not with those of a session."""
        return self

    @property
    def region_hint(self) -> str:
        """A sentence on the region for the error of a host that cannot be reached; empty if it would say nothing."""
        if not (self.endpoint.is_directory and self.endpoint.is_amazons):
            return ""  # S3 answers that it is another region
        return (
            f" A directory bucket has an address in its own region alone, and {self.region!r} was tried: is the zone "
            "in its name of that region?"
        )

    @property
    def has_md5_etags(self) -> bool:
        """Whether the ETag of what is sent in one piece may be its MD5."""
        return not self.customer_key and not self.endpoint.is_directory

    @property
    def clock_offset(self) -> float:
        """Seconds that the service's clock is ahead of this machine's, as far as a refused request has told it."""
        return self._clock_offset

    def request_head(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str],
        fields: Mapping[str, str],
        signed_fields: Mapping[str, str] = _NO_FIELDS,
        payload_sha256: str = sigv4.EMPTY_SHA256,
        *,
        place: Place | None = None,
    ) -> bytes:
        """Return the signed head of a request.

        Args:
            method: ``GET``, ``PUT``, ...
            key: The object's, or None for a request about the bucket.
            query: Parameters, not encoded.
            fields: Header fields that S3 does not want signed, by lower-case name.
            signed_fields: Those that it does, beside those of every request: ``x-amz-*``.
            payload_sha256: Hex digest of the body, or ``UNSIGNED-PAYLOAD``.
            place: Where it goes; None is where the bucket answers now.

        Raises:
            ArgumentError: The key cannot be encoded, or a field holds what cannot be sent.
            CredentialsError: There is nothing to sign with.
        """
        place = place or self.place
        path = f"{place.endpoint.base_path}/{self._encode(key)}"
        query_string = sigv4.canonical_query(query) if query else ""
        target = f"{path}?{query_string}" if query_string else path
        common = self._lines_in_common(place, payload_sha256, signed_fields)
        if common.before_path:
            target = f"{common.before_path}{target}"
        return build_head(method, target, fields, common.complete(method, path, query_string))

    @property
    def secrets(self) -> list[str]:
        """What requests carry that no message may show: tokens, authorization of a proxy, key of SSE-C and its MD5."""
        return [*self._told, *(value for name, value in self.customer_key.items() if not name.endswith("algorithm"))]

    def _lines_in_common(self, place: Place, payload_sha256: str, signed_fields: Mapping[str, str]) -> _CommonLines:
        """Return what the requests of one second share: thousands of them are signed by the same work."""
        second = int(self._clock() + self._clock_offset)
        key = (place, second, payload_sha256, signed_fields)
        common = self._common
        if common is None or common.key != key:
            common = self._common = _CommonLines(key, *self._new_lines(*key))
        return common

    def _new_lines(
        self, place: Place, second: int, payload_sha256: str, signed_fields: Mapping[str, str]
    ) -> tuple[str, str, Signer | AsymmetricSigner | None]:
        endpoint, origin = place.endpoint, place.endpoint.origin
        signed = {"host": endpoint.host, **signed_fields}
        if self._requester_pays:
            signed["x-amz-request-payer"] = "requester"
        unsigned = dict(self._unsigned)
        before_path = ""
        proxy = self._session().proxy(origin) if origin.scheme == "http" else None  # https goes through a tunnel
        if proxy is not None:
            before_path = f"http://{endpoint.host}"
            if proxy.authorization is not None:
                unsigned["proxy-authorization"] = proxy.authorization
        credentials = self._credentials(place)
        token = None if credentials is None else credentials.session_token
        for secret in (token, None if proxy is None else proxy.authorization):
            if secret and secret not in self._told:
                self._told = (*self._told[1 - _TOLD :], secret)
        self.access_key = None if credentials is None else credentials.access_key
        if credentials is None:
            return before_path, format_fields({**signed, **unsigned}), None
        when = sigv4.timestamp(second)
        signed["x-amz-content-sha256"] = payload_sha256
        signed["x-amz-date"] = when
        if token:
            if not (token.isascii() and token.isprintable()):  # said here, where no message shows it
                raise CredentialsError("The session token cannot be sent: perhaps there is a line break in it.")
            signed[self._session_field] = token
        sign: type[Signer | AsymmetricSigner] = Signer
        if endpoint.scheme is Scheme.SIGV4A:
            sign, signed[REGION_SET] = AsymmetricSigner, place.signing_region
        signer = sign(
            signed,
            payload_sha256=payload_sha256,
            credentials=credentials,
            region=place.signing_region,
            when=when,
            service=endpoint.service,
        )
        lines = format_fields({**signed, **unsigned, "authorization": signer.preamble})
        return before_path, lines.removesuffix("\r\n"), signer

    def _credentials(self, place: Place) -> Credentials | None:
        """Return what to sign with for a place now; None if requests are not to be signed."""
        del place
        return self._session().credentials()

    def correct(self, error: S3Error, fields: Mapping[str, str], corrections: int) -> bool:
        """Change what the service found wrong: region, clock or credentials.

        Args:
            error: What the answer stands for.
            fields: The answer's header fields.
            corrections: The number of corrections when the request was signed.

        Returns:
            Whether the request would be another one now.
        """
        if not isinstance(error, (RegionError, ClockSkewError, CredentialsError)):
            return False
        place = self.place
        if corrections == place.corrections:
            corrected = self._corrected(place, error, fields)
            if corrected is not None:
                self.place = corrected  # one assignment: no other thread sees half of it
        return corrections != self.place.corrections  # an answer before this one may have led to the correction

    def _corrected(self, place: Place, error: S3Error, fields: Mapping[str, str]) -> Place | None:
        """Return what the place is once it is corrected; None if nothing can be."""
        if isinstance(error, RegionError):
            return self._in_region(place, error.region or "")
        if isinstance(error, ClockSkewError):
            is_corrected = self._correct_clock(fields.get("date", ""))
        else:
            is_corrected = error.code in _EXPIRED
            if is_corrected:
                LOG.info(
                    "%s refuses the credentials (%s): they are looked for anew.", place.endpoint.origin, error.code
                )
                self._forget_credentials(place)
        return place._replace(corrections=place.corrections + 1) if is_corrected else None

    def _forget_credentials(self, place: Place) -> None:
        """Look for others at their next use: those that have signed for a place were refused."""
        del place
        self._session().forget_credentials()

    def _in_region(self, place: Place, region: str) -> Place | None:
        is_told = bool(place.endpoint.region)  # by the bucket's name, so another region would sign the same
        if is_told or region == place.region or _REGION.fullmatch(region) is None:
            return None
        corrected = Place(self._session().endpoint(self.name, region), region, place.corrections + 1)
        LOG.info("Bucket %r lies in region %r: it is asked at %s now.", self.name, region, corrected.endpoint.origin)
        return corrected

    def _correct_clock(self, date: str) -> bool:
        theirs = parse_http_date(date)
        if theirs is None:
            return False
        offset = theirs - self._clock()
        if abs(offset - self._clock_offset) < _TOLERATED_SKEW:
            return False
        self._clock_offset = offset
        LOG.info("This machine's clock is off by %.0f s: requests are signed by that of the service.", -offset)
        return True

    def _encode(self, key: str | None) -> str:
        if key is None:
            return ""
        try:
            return sigv4.encode_path(key)
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"The key {key!r} cannot be sent: {error.reason}. Keys are Unicode text, encoded as UTF-8.",
                bucket=self.name,
            ) from error

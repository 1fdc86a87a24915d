"""AWS Signature Version 4A, which signs for several regions by an elliptic curve; multi-region access points want it.

awscrt (extra ``sigv4a``) computes it. It derives the private key from the secret key and signs by ECDSA, so no two
signatures of a request are equal. Source:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/MultiRegionAccessPointRequests.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone

from s3torch._aws.sigv4 import Credentials
from s3torch._forks import NO_FORK
from s3torch.errors import ConfigError

__all__ = ["REGION_SET", "AsymmetricSigner", "missing"]

# The field that names the regions.
REGION_SET = "x-amz-region-set"
# What awscrt adds itself, and refuses where it is there before.
_ADDED = frozenset({"x-amz-date", "x-amz-content-sha256", "x-amz-security-token", REGION_SET})
_SIGNATURE = re.compile(r"SignedHeaders=([^,]*), Signature=([0-9a-f]+)")


def missing(bucket: str) -> ConfigError:
    """Return the error of a bucket that cannot be signed for without awscrt."""
    return ConfigError(
        f"{bucket!r} is a multi-region access point: requests to it are signed by SigV4A, which needs awscrt. "
        "pip install 's3torch[sigv4a]', or name the bucket or an access point of one region.",
        bucket=bucket,
    )


class AsymmetricSigner:
    """Signs as ``sigv4.Signer`` does, which has the same arguments and attributes; ``region`` may be ``*``."""

    __slots__ = ("_arguments", "_fields", "_signed_names", "_when", "preamble")

    def __init__(
        self,
        fields: Mapping[str, str],
        *,
        payload_sha256: str,
        credentials: Credentials,
        region: str,
        when: str,
        service: str = "s3",
    ) -> None:
        self._fields = [(name, value) for name, value in fields.items() if name not in _ADDED]
        self._when = datetime.strptime(when, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        self._arguments = payload_sha256, credentials, region, service
        self._signed_names = ";".join(sorted(fields))
        self.preamble = (
            f"AWS4-ECDSA-P256-SHA256 Credential={credentials.access_key}/{when[:8]}/{service}/aws4_request,"
            f"SignedHeaders={self._signed_names},Signature="
        )

    def signature(self, method: str, path: str, query: str) -> str:
        """Return the signature of a request; arguments as in ``sigv4.canonical_request``."""
        with NO_FORK:
            from awscrt import auth, http

        payload_sha256, credentials, region, service = self._arguments
        request = http.HttpRequest(method, f"{path}?{query}" if query else path, http.HttpHeaders(self._fields))
        config = auth.AwsSigningConfig(
            algorithm=auth.AwsSigningAlgorithm.V4_ASYMMETRIC,
            credentials_provider=auth.AwsCredentialsProvider.new_static(
                credentials.access_key, credentials.secret_key, credentials.session_token or None
            ),
            region=region,
            service=service,
            date=self._when,
            use_double_uri_encode=False,
            should_normalize_uri_path=False,
            signed_body_value=payload_sha256,
            signed_body_header_type=auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
        )
        auth.aws_sign_request(request, config).result()
        found = _SIGNATURE.search(request.headers.get("Authorization") or "")
        if found is None or found[1] != self._signed_names:
            raise AssertionError("awscrt has signed other fields than were given")
        return found[2]

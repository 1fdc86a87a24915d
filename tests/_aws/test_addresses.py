"""Where requests go and how they are signed, compared with those that botocore would send."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3torch import S3Client, S3ClientConfig
from s3torch._aws import sigv4
from s3torch._aws.endpoint import Scheme
from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials
from s3torch._aws.sigv4a import AsymmetricSigner
from s3torch.errors import ArgumentError, ConfigError
from tests.support.oracle import new_session

MRAP = "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"
_PART = st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True)
_REGION = st.sampled_from(["us-east-1", "us-west-2", "eu-central-1", "cn-north-1", "us-gov-west-1", "ap-southeast-7"])
_SEPARATOR = st.sampled_from(":/")
_PARTITION = st.sampled_from(["aws", "aws-cn"])
BUCKETS = st.one_of(
    _PART,
    st.builds("{}.{}".format, _PART, _PART),
    st.builds("{}-abcdefghijklmnopqrstuvwxyz1234-s3alias".format, _PART),
    st.builds("{}--ol-s3".format, _PART),
    st.builds("{}--use1-az4--x-s3".format, _PART),
    st.builds("{}--usw2-az1--xa-s3".format, _PART),
    st.builds("{}-o01a2b3c4d5e6f7{}--op-s3".format, _PART, _PART),
    st.builds("arn:{}:s3:{}:123456789012:accesspoint{}{}".format, _PARTITION, _REGION, _SEPARATOR, _PART),
    st.builds("arn:aws:s3-object-lambda:{}:123456789012:accesspoint{}{}".format, _REGION, _SEPARATOR, _PART),
    st.builds(
        "arn:aws:s3-outposts:{}:123456789012:outpost{}op-01234567890123456{}accesspoint{}{}".format,
        *(_REGION, _SEPARATOR, _SEPARATOR, _SEPARATOR, _PART),
    ),
    st.builds("arn:aws:s3::123456789012:accesspoint{}{}.mrap".format, _SEPARATOR, _PART),
)
_FLAG = st.sampled_from(["", "true", "false"])
ENVIRONMENTS = st.fixed_dictionaries(
    {},
    optional={
        "AWS_USE_DUALSTACK_ENDPOINT": _FLAG,
        "AWS_USE_FIPS_ENDPOINT": _FLAG,
        "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": st.sampled_from(["legacy", "regional"]),
        "AWS_S3_USE_ARN_REGION": _FLAG,
        "AWS_S3_DISABLE_EXPRESS_SESSION_AUTH": _FLAG,
        "AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS": _FLAG,
    },
)
PROFILES = st.fixed_dictionaries(
    {},
    optional={
        "use_accelerate_endpoint": st.sampled_from(["true", "false"]),
        "use_dualstack_endpoint": st.sampled_from(["true", "false"]),
        "us_east_1_regional_endpoint": st.sampled_from(["legacy", "regional"]),
        "use_arn_region": st.sampled_from(["true", "false"]),
    },
)


def asked_of_botocore(bucket: str, region: str, endpoint: str | None) -> tuple[str, str, str, str] | None:
    """Return URL, algorithm, region and service of the request that botocore would send; None if it refuses.

    Outposts can be signed for by both algorithms; botocore takes the other one if awscrt is there.
    """
    seen: list[Any] = []
    config = Config(signature_version="s3v4") if "outpost" in bucket or bucket.endswith("--op-s3") else None

    def sign(request: Any, **_: object) -> None:
        seen.append(request)
        raise ConnectionError  # nothing is sent

    def create_session(**_: object) -> object:
        """Answer CreateSession."""
        expiration = "2999-01-01T00:00:00Z"
        keys = {"AccessKeyId": "KEY", "SecretAccessKey": "SECRET", "SessionToken": "TOKEN", "Expiration": expiration}
        return type("Answer", (), {"status_code": 200}), {"Credentials": keys}

    try:
        client = new_session().create_client(
            "s3",
            region_name=region,
            endpoint_url=endpoint,
            config=config,
            aws_access_key_id="KEY",
            aws_secret_access_key="SECRET",
        )
        client.meta.events.register("before-call.s3.CreateSession", create_session)
        client.meta.events.register("before-send.s3.HeadObject", sign)
        client.head_object(Bucket=bucket, Key="key")
    except ConnectionError:
        pass
    except (BotoCoreError, ValueError):
        return None
    (request,) = seen
    authorization = request.headers["Authorization"]
    text = authorization.decode() if isinstance(authorization, bytes) else authorization
    algorithm, scope = re.findall(r"(\S+) Credential=KEY/([^,]+),", text)[0]
    parts = scope.split("/")
    regions = request.headers.get("X-Amz-Region-Set") or parts[1]
    return request.url, algorithm, regions.decode() if isinstance(regions, bytes) else regions, parts[-2]


def asked_of_us(bucket: str, region: str, endpoint: str | None) -> tuple[str, str, str, str] | None:
    """Return the same of the request that s3torch would send."""
    session = AwsSession(S3ClientConfig(), region, endpoint)
    try:
        where = session.endpoint(bucket, region)
    except (ArgumentError, ConfigError):
        return None
    algorithm = "AWS4-ECDSA-P256-SHA256" if where.scheme is Scheme.SIGV4A else "AWS4-HMAC-SHA256"
    url = f"{where.origin.scheme}://{where.host}{where.base_path}/key"
    return url, algorithm, where.region or region, where.service


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bucket=BUCKETS, region=_REGION, environment=ENVIRONMENTS, profile=PROFILES)
def test_addresses_are_botocores(
    tmp_path: Path, bucket: str, region: str, environment: dict[str, str], profile: dict[str, str]
):
    """Whatever the bucket, the region, the environment and the profile: address and signature are botocore's."""
    lines = [f"  {name} = {value}" for name, value in profile.items()]
    (tmp_path / "config").write_text("\n".join(["[default]", "s3 =", *lines, ""]) if lines else "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        for name, value in environment.items():
            patch.setenv(name, value)
        assert asked_of_us(bucket, region, None) == asked_of_botocore(bucket, region, None)


@settings(max_examples=50, deadline=None)
@given(bucket=BUCKETS, region=_REGION, endpoint=st.sampled_from(["http://127.0.0.1:9000", "http://[::1]:9000/base"]))
def test_addresses_at_other_endpoints_are_botocores(bucket: str, region: str, endpoint: str):
    """So it is with an endpoint of the user's, but for names in front of an IPv6 address: they are refused."""
    theirs = asked_of_botocore(bucket, region, endpoint)
    assert asked_of_us(bucket, region, endpoint) == (None if theirs is None or ".[" in theirs[0] else theirs)


def test_access_points_tell_their_region(monkeypatch: pytest.MonkeyPatch):
    """A request to an access point is signed for the region of its ARN, wherever the client is."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    bucket = S3Client("us-east-1")._access.bucket("arn:aws:s3:eu-west-1:123456789012:accesspoint/data")
    head = bucket.request_head("GET", "key", {}, {}).decode()
    assert "host: data-123456789012.s3-accesspoint.eu-west-1.amazonaws.com\r\n" in head.lower()
    assert "/eu-west-1/s3/aws4_request" in head


def test_multi_region_access_points_are_signed_by_the_curve(monkeypatch: pytest.MonkeyPatch):
    """The request to a multi-region access point carries its set of regions, and a signature by SigV4A."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    bucket = S3Client("us-east-1")._access.bucket(MRAP)
    head = bucket.request_head("GET", "a key/ü", {"versionId": "1"}, {}, {"x-amz-checksum-mode": "ENABLED"}).decode()
    assert head.startswith("GET /a%20key/%C3%BC?versionId=1 HTTP/1.1\r\n")
    lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
    assert lines["host"] == "mfzwi23gnjvgw.mrap.accesspoint.s3-global.amazonaws.com"
    assert lines["x-amz-region-set"] == "*"
    assert lines["x-amz-security-token"] == "token"
    names = "host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date;x-amz-region-set;x-amz-security-token"
    pattern = (
        rf"aws4-ecdsa-p256-sha256 credential=user/\d{{8}}/s3/aws4_request,signedheaders={names},signature=[0-9a-f]+"
    )
    assert re.fullmatch(pattern, lines["authorization"])


def test_signatures_by_the_curve_are_valid():
    """What is signed by SigV4A is the same canonical request that SigV4 signs: awscrt verifies it by the public key."""
    fields = {
        "host": "h",
        "x-amz-content-sha256": sigv4.UNSIGNED_PAYLOAD,
        "x-amz-date": "20260101T000000Z",
        "x-amz-region-set": "*",
    }
    signer = AsymmetricSigner(
        fields,
        payload_sha256=sigv4.UNSIGNED_PAYLOAD,
        credentials=Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        region="*",
        when="20260101T000000Z",
    )
    signature = signer.signature("GET", "/a//b/../c%20d", "x=1")
    canonical, names = sigv4.canonical_request("GET", "/a//b/../c%20d", "x=1", fields, sigv4.UNSIGNED_PAYLOAD)
    assert signer.preamble.endswith(f"SignedHeaders={names},Signature=")
    verify(signature, canonical, "20260101/s3/aws4_request")


def verify(signature: str, canonical: str, scope: str) -> None:
    """Check a signature against the public key that belongs to the example's secret key."""
    import hashlib
    import hmac

    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")
    # The derivation of the private key: NIST SP 800-108 in counter mode, as AWS documents for SigV4A.
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    secret, access_key = b"AWS4AwJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", b"AKIDEXAMPLE"
    for counter in range(1, 255):
        context = b"\x00\x00\x00\x01AWS4-ECDSA-P256-SHA256\x00" + access_key + bytes([counter]) + b"\x00\x00\x01\x00"
        candidate = int.from_bytes(hmac.new(secret, context, hashlib.sha256).digest(), "big")
        if candidate <= order - 2:
            break
    public = ec.derive_private_key(candidate + 1, ec.SECP256R1()).public_key()
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    signed = f"AWS4-ECDSA-P256-SHA256\n20260101T000000Z\n{scope}\n{digest}"
    public.verify(bytes.fromhex(signature), signed.encode(), ec.ECDSA(hashes.SHA256()))


def test_without_awscrt_multi_region_access_points_are_refused():
    """Where awscrt is missing the error says what to install; other buckets are as ever."""
    program = (
        "import sys; sys.modules['awscrt'] = None\n"
        "from s3torch import S3Client\n"
        "from s3torch.errors import ConfigError\n"
        "access = S3Client('us-east-1')._access\n"
        "print(access.bucket('bucket').endpoint.host)\n"
        "try:\n"
        f"    access.bucket({MRAP!r})\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    host, error = done.stdout.splitlines()
    assert host == "bucket.s3.amazonaws.com"
    assert re.match(r".*is a multi-region access point: .*pip install 's3torch\[sigv4a\]'", error)

"""Tests that a bucket is addressed as botocore addresses it with the same configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.awsrequest
import pytest
from botocore.config import Config

from s3torch import S3ClientConfig
from s3torch._aws.session import AwsSession
from s3torch.errors import S3Error
from tests.support.oracle import new_session

ENDPOINTS = [
    "https://minio.corp.example.com:9000",
    "https://gw.example.com/s3/",
    "https://gw.example.com/s3",
    "https://s3.example.com",
    "http://minio:9000",
    "http://localhost:9000",
    "http://127.0.0.1:9000",
    "http://10.0.0.1",
    "http://[::1]:9000",
    "https://s3.eu-west-1.amazonaws.com",
    "https://bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com",
    "https://s3-accelerate.amazonaws.com",
    "https://storage.googleapis.com",
    "https://account.r2.cloudflarestorage.com",
]
STYLES = [None, "auto", "path", "virtual"]
BUCKETS = ["bucket", "my.bucket", "Bucket_1", "1-2-3"]
# Of S3 itself without an endpoint; "auto" differs between the region's host and the global one.
REGIONS = ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1"]


class _Sent(Exception):  # noqa: N818  # no error: it tells what would have been sent
    pass


def botocores(endpoint: str | None, region: str, bucket: str, *, style: str | None = None) -> str | None:
    """Return the URL of key ``k`` that botocore sends a request to; None if it refuses to."""

    def stop(request: botocore.awsrequest.AWSPreparedRequest, **_: object) -> None:
        raise _Sent(request.url)

    config = Config(signature_version="s3v4", s3=None if style is None else {"addressing_style": style})
    create: Any = new_session().create_client
    client = create("s3", region_name=region, endpoint_url=endpoint, config=config)
    client.meta.events.register("before-send.s3", stop)
    try:
        client.get_object(Bucket=bucket, Key="k")
    except _Sent as sent:
        return str(sent)
    except Exception:  # noqa: BLE001  # whatever it is, nothing is sent
        return None
    raise AssertionError("a request was sent")


def ours(endpoint: str | None, region: str, bucket: str, *, force_path_style: bool = False) -> str | None:
    """Return the URL of key ``k`` that s3torch sends a request to; None if it refuses to."""
    session = AwsSession(S3ClientConfig(force_path_style=force_path_style), region, endpoint)
    try:
        found = session.endpoint(bucket, region)
    except S3Error:
        return None
    return f"{found.origin.scheme}://{found.host}{found.base_path}/k"


@pytest.fixture(autouse=True)
def profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of profiles, and nothing else from this machine."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ACCESS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "config"


def write_style(profile: Path, style: str | None) -> None:
    profile.write_text("[default]\n" if style is None else f"[default]\ns3 =\n  addressing_style = {style}\n")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_as_botocore(profile: Path, endpoint: str, style: str | None):
    """With an endpoint, the profile's style decides as it does for botocore; a name that cannot be is refused."""
    write_style(profile, style)
    for bucket in BUCKETS:
        expected = botocores(endpoint, "eu-west-1", bucket)
        if expected is not None and "[" in urlsplit(expected).netloc[1:]:
            expected = None  # a bucket in front of an IPv6 address, which nobody can reach
        assert ours(endpoint, "eu-west-1", bucket) == expected


@pytest.mark.parametrize("style", ["path", "virtual"])
@pytest.mark.parametrize("region", REGIONS)
def test_as_botocore_on_aws(profile: Path, region: str, style: str):
    """Without an endpoint it is that of the region, addressed as the profile says."""
    write_style(profile, style)
    for bucket in BUCKETS:
        assert ours(None, region, bucket) == botocores(None, region, bucket)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("endpoint", [*ENDPOINTS, None])
def test_path_style_by_force(profile: Path, endpoint: str | None, style: str | None):
    """``force_path_style=True`` is the style ``path``, whatever the profile says."""
    write_style(profile, style)
    expected = botocores(endpoint, "eu-west-1", "bucket", style="path")
    assert ours(endpoint, "eu-west-1", "bucket", force_path_style=True) == expected


def test_endpoint_of_the_profile(profile: Path, monkeypatch: pytest.MonkeyPatch):
    """An endpoint of the profile or the environment is addressed as one that is given."""
    profile.write_text("[default]\nendpoint_url = https://s3.example.com:9000\n")
    assert ours(None, "eu-west-1", "bucket") == botocores(None, "eu-west-1", "bucket")
    assert ours(None, "eu-west-1", "bucket") == "https://s3.example.com:9000/bucket/k"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://gw.example.com/s3/")
    assert ours(None, "eu-west-1", "bucket") == "https://gw.example.com/s3/bucket/k"
    profile.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    assert ours(None, "eu-west-1", "bucket") == "https://bucket.gw.example.com/s3/k"

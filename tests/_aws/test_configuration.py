from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader

from s3torch import S3Client, S3ClientConfig
from s3torch._aws import configuration
from s3torch._aws.configuration import configuration_of
from s3torch.errors import ConfigError, CredentialsError

Loads = list[str]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is known of earlier tests, and nothing is configured."""
    monkeypatch.setattr(configuration, "_loaders", {})
    monkeypatch.setattr(configuration, "_configurations", type(configuration._configurations)())
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    """The files that botocore parses."""
    loaded: Loads = []
    load_file = JSONFileLoader.load_file

    def note(self: JSONFileLoader, file_path: str) -> object:
        content = load_file(self, file_path)
        if content is not None:
            loaded.append(file_path)
        return content

    monkeypatch.setattr(JSONFileLoader, "load_file", note)
    return loaded


def _begin(client: S3Client, bucket: str = "bucket") -> str:
    """Do all that a first request costs but sending, and return its region and where it would go."""
    made = client._access.bucket(bucket)
    made.request_head("GET", "key", {}, {})
    return f"{made.region} {made.endpoint.origin.scheme}://{made.endpoint.host}{made.endpoint.base_path}"


def test_each_file_is_parsed_once(loads: Loads):
    """The first client of a process parses each of botocore's files once."""
    _begin(S3Client("us-east-1"))
    assert len(loads) == len(set(loads)) > 0


@pytest.mark.parametrize(
    "other",
    [
        lambda: S3Client("us-east-1"),
        lambda: S3Client("eu-west-1"),
        lambda: S3Client("us-east-1", endpoint="http://127.0.0.1:9000"),
        lambda: S3Client("us-east-1", endpoint="https://s3.example.com"),
        lambda: S3Client(s3client_config=S3ClientConfig(unsigned=True, force_path_style=True)),
    ],
    ids=["same", "region", "address", "name", "configuration"],
)
def test_later_clients_parse_nothing(loads: Loads, other: Callable[[], S3Client]):
    """Another client, whatever its configuration, parses none of botocore's files again."""
    _begin(S3Client("us-east-1"))
    loads.clear()
    _begin(other())
    assert loads == []


def test_other_environments_parse_nothing(loads: Loads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another environment has other settings and the same model."""
    (tmp_path / "config").write_text("[profile other]\nregion = eu-central-1\n")
    _begin(S3Client("us-east-1"))
    loads.clear()
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert _begin(S3Client()) == "eu-central-1 https://bucket.s3.eu-central-1.amazonaws.com"
    assert loads == []


def _send_count_in_child(connection, expected: str) -> None:
    """Run in a forked child: count what it parses."""
    loaded: Loads = []
    load_file = JSONFileLoader.load_file

    def note(self: JSONFileLoader, file_path: str) -> object:
        loaded.append(file_path)
        return load_file(self, file_path)

    JSONFileLoader.load_file = note
    connection.send((loaded, _begin(S3Client("us-east-1")) == expected))


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_forked_children_parse_nothing():
    """A forked child makes sessions of its own, and goes on with the parsed model."""
    where = _begin(S3Client("us-east-1"))
    here, there = get_context("fork").Pipe()
    child = get_context("fork").Process(target=_send_count_in_child, args=(there, where))
    child.start()
    assert here.recv() == ([], True)
    child.join()


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_configurations_belong_to_a_process():
    """A forked child uses no session of its parent's."""
    inherited = configuration_of(None)
    here, there = get_context("fork").Pipe()

    def compare() -> None:
        there.send(configuration_of(None) is inherited)

    child = get_context("fork").Process(target=compare)
    child.start()
    assert here.recv() is False
    child.join()
    assert configuration_of(None) is inherited


def test_same_settings_share():
    """Two clients of one environment share a session of botocore's, and no credentials."""
    clients = [S3Client("us-east-1"), S3Client("us-east-1")]
    for client in clients:
        _begin(client)
    assert len(configuration._configurations) == 1
    first, second = (client._access._sessions()._source for client in clients)
    assert first is not second


@pytest.mark.parametrize("file", ["config", "credentials"])
def test_changed_files_are_read_anew(tmp_path: Path, file: str):
    """A new client sees what the configuration files say now, even if size and time are those of before."""
    path = tmp_path / file
    path.write_text("[default]\nregion = eu-west-1\n")
    before = path.stat()
    assert S3Client().region == "eu-west-1"
    path.write_text("[default]\nregion = us-west-2\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert S3Client().region == "us-west-2"


@pytest.mark.parametrize(
    ("variable", "value", "where"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000", "us-east-1 http://127.0.0.1:9000/bucket"),
        ("AWS_ENDPOINT_URL_S3", "http://s3.test.example", "us-east-1 http://s3.test.example/bucket"),
        ("AWS_REGION", "eu-west-3", "eu-west-3 https://bucket.s3.eu-west-3.amazonaws.com"),
        ("AWS_DEFAULT_REGION", "eu-west-3", "eu-west-3 https://bucket.s3.eu-west-3.amazonaws.com"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "true", "us-east-1 https://bucket.s3.dualstack.us-east-1.amazonaws.com"),
        ("AWS_USE_FIPS_ENDPOINT", "true", "us-east-1 https://bucket.s3-fips.us-east-1.amazonaws.com"),
    ],
)
def test_changed_variables_count(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, where: str):
    """A new client asks the environment as it is now, and again when that is as it was."""
    before = _begin(S3Client())
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)
        assert _begin(S3Client()) == where != before
    assert _begin(S3Client()) == before


def test_unknown_profiles(monkeypatch: pytest.MonkeyPatch):
    """A profile that does not exist is refused each time, and keeps nobody from another."""
    for _ in range(2):
        with pytest.raises(ConfigError, match="There is no profile 'other'"):
            _begin(S3Client("us-east-1", s3client_config=S3ClientConfig(profile="other")))
    _begin(S3Client("us-east-1"))


def test_credentials_are_found_by_each_client(monkeypatch: pytest.MonkeyPatch):
    """New credentials in the environment are those of the next client."""
    assert S3Client()._access._sessions().credentials().access_key == "key"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    assert S3Client()._access._sessions().credentials().access_key == "other"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError, match="No credentials were found"):
        S3Client()._access._sessions().credentials()


def test_forgotten_credentials_are_found_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """After ``forget_credentials`` a client has those that its profile has now; another one keeps its own."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = one\naws_secret_access_key = s\n")
    forgetful, other = S3Client("us-east-1")._access._sessions(), S3Client("us-east-1")._access._sessions()
    assert forgetful.credentials().access_key == other.credentials().access_key == "one"
    path.write_text("[default]\naws_access_key_id = two\naws_secret_access_key = s\n")
    forgetful.forget_credentials()
    assert forgetful.credentials().access_key == "two"
    assert other.credentials().access_key == "one"


def test_secrets_are_not_kept():
    """What is kept for the next client holds no secret of the environment."""
    _begin(S3Client())
    assert "'secret'" not in repr(list(configuration._configurations))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Environments and endpoints that come and go are not kept for ever."""
    for number in range(20):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{9000 + number}")
        assert _begin(S3Client()) == f"us-east-1 http://127.0.0.1:{9000 + number}/bucket"
    assert len(configuration._configurations) == configuration._MOST_CONFIGURATIONS
    for number in range(20):
        assert (
            _begin(S3Client(endpoint=f"http://127.0.0.1:{9000 + number}"))
            == f"us-east-1 http://127.0.0.1:{9000 + number}/bucket"
        )
    latest = next(reversed(configuration._configurations.values()))
    assert len(latest._placeholders) == configuration._MOST_PLACEHOLDERS


def test_own_models_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another AWS_DATA_PATH has a loader of its own, which knows the services there, too."""
    assert "own" not in configuration._loader_of(None).list_available_services("service-2")
    (tmp_path / "models" / "own").mkdir(parents=True)
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path / "models"))
    assert _begin(S3Client("us-east-1")) == "us-east-1 https://bucket.s3.amazonaws.com"
    services = configuration._loader_of(str(tmp_path / "models")).list_available_services("service-2")
    assert {"own", "s3", "sts", "sso"} <= set(services)

"""Tests of install() and status(): what they do to this process, what they refuse, and which names there are then."""

from __future__ import annotations

import base64
import importlib
import inspect
import io
import json
import pickle
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import s3torch.compat
from s3torch import S3Client, S3Reader
from s3torch.compat import CompatError, MigrationWarning
from s3torch.compat.installing import PACKAGES, real_version
from tests.compat.surface import MODULES, parameters

HERE = Path(__file__).parent
SURFACE: dict[str, dict[str, Any]] = json.loads((HERE / "surface.json").read_text())
PICKLES: dict[str, str] = json.loads((HERE / "pickles.json").read_text())

# What s3torch has no use for, or has otherwise: docs/migrate.md has them in its table.
_OTHERWISE = {"S3Writer.__init__", "S3Writer.write"}


def _ours() -> set[str]:
    return {name for name in sys.modules if name.partition(".")[0] in ("s3torchconnector", "s3torchconnectorclient")}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This process as if nothing had been installed, and again behind the test."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(PACKAGES)])
    if real_version() is not None:
        pytest.skip("s3torchconnector is installed here")
    for name in _ours():
        monkeypatch.delitem(sys.modules, name)
    yield monkeypatch
    for name in _ours():
        del sys.modules[name]


@pytest.fixture
def installed(process: pytest.MonkeyPatch) -> None:
    """This process with the drop-in."""
    process.syspath_prepend(str(PACKAGES))


@pytest.fixture
def real(process: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that looks as if s3torchconnector 1.4.2 was installed there."""
    for package in ("s3torchconnector", "s3torchconnectorclient"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("__version__ = 'real'")
    (tmp_path / "s3torchconnector-1.4.2.dist-info").mkdir()
    (tmp_path / "s3torchconnector-1.4.2.dist-info" / "METADATA").write_text("Name: s3torchconnector\nVersion: 1.4.2\n")
    process.syspath_prepend(str(tmp_path))
    return tmp_path


def test_install(process: pytest.MonkeyPatch):
    """After it, s3torchconnector is s3torch, and errors and readers of s3torch are those that it names."""
    with pytest.warns(MigrationWarning, match=r"s3torchconnector is s3torch .*docs/migrate.md"):
        s3torch.compat.install()
    module = importlib.import_module("s3torchconnector")
    assert issubclass(module.S3MapDataset, s3torch.S3MapDataset)
    assert module.S3Exception is s3torch.S3Error
    assert issubclass(S3Reader, module.S3Reader)
    assert not issubclass(io.BytesIO, module.S3Reader)


def test_install_warns_once(process: pytest.MonkeyPatch):
    """The warning shows the line of the program; a second call does nothing and warns of nothing."""
    with pytest.warns(MigrationWarning) as warned:
        s3torch.compat.install()
    before = list(sys.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s3torch.compat.install()
    assert [warning.filename for warning in warned] == [__file__]
    assert sys.path == before


def test_install_beside_the_real_one(real: Path):
    """Where the real one is installed it refuses, says what it would do and how, and changes nothing."""
    before = list(sys.path)
    with pytest.raises(CompatError, match=r"1\.4\.2 is installed, and would be hidden.*install\(replace=True\)"):
        s3torch.compat.install()
    assert sys.path == before
    assert importlib.import_module("s3torchconnector").__version__ == "real"


def test_install_replaces(real: Path):
    """Told to, it stands before the real one, and says so."""
    with pytest.warns(MigrationWarning, match=r"hides the installed 1\.4\.2"):
        s3torch.compat.install(replace=True)
    assert importlib.import_module("s3torchconnectorclient").__version__ != "real"
    assert "and stands before s3torchconnector 1.4.2" in str(s3torch.compat.status())


def test_install_behind_the_real_one(real: Path):
    """Packages of ours that are found after the real one are not installed, and are put before it."""
    sys.path.append(str(PACKAGES))
    assert not s3torch.compat.status().is_installed
    with pytest.raises(CompatError, match="is installed, and would be hidden"):
        s3torch.compat.install()
    with pytest.warns(MigrationWarning):
        s3torch.compat.install(replace=True)
    assert (sys.path[0], sys.path.count(str(PACKAGES))) == (str(PACKAGES), 1)
    assert s3torch.compat.status().is_installed


def test_install_without_metadata(real: Path):
    """A real one that lies in ``sys.path`` without having been installed is found, too."""
    (real / "s3torchconnector-1.4.2.dist-info" / "METADATA").unlink()
    (real / "s3torchconnector-1.4.2.dist-info").rmdir()
    importlib.invalidate_caches()
    with pytest.raises(CompatError, match="of unknown version is installed"):
        s3torch.compat.install()


@pytest.mark.parametrize("replace", [False, True])
def test_install_too_late(real: Path, replace: bool):
    """Once the real one was imported it refuses in any case, and names what to import first."""
    importlib.import_module("s3torchconnectorclient")
    before = list(sys.path)
    with pytest.raises(CompatError, match=r"s3torchconnectorclient was imported before.*Import s3torch.compat"):
        s3torch.compat.install(replace=replace)
    assert sys.path == before


def test_status(process: pytest.MonkeyPatch):
    """It shows whether it is installed, and what each name is."""
    assert "not installed; s3torch.compat.install() does that" in repr(s3torch.compat.status())
    process.syspath_prepend(str(PACKAGES))
    found = s3torch.compat.status()
    assert found.is_installed
    assert found.names["s3torchconnector"]["S3MapDataset"] == "s3torch.compat.datasets.S3MapDataset"
    assert "    S3Exception          s3torch.errors.S3Error\n" in repr(found)


def test_status_without_lightning(process: pytest.MonkeyPatch):
    """A module that cannot be imported here is shown as such."""
    process.setitem(sys.modules, "s3torch.compat.packages.s3torchconnector.lightning", None)
    assert "s3torchconnector.lightning: cannot be imported here" in str(s3torch.compat.status())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", MODULES)
def test_names(name: str):
    """Each public name of each module of s3torchconnector is there."""
    module = importlib.import_module(name)
    assert Path(module.__file__ or "").is_relative_to(PACKAGES)
    assert [each for each in SURFACE[name] if not hasattr(module, each)] == []
    assert {each: getattr(module, each) for each, value in SURFACE[name].items() if isinstance(value, int)} == {
        each: value for each, value in SURFACE[name].items() if isinstance(value, int)
    }


def _classes() -> Iterator[tuple[str, str, str, Any]]:
    """Yield module, class, method and parameters of all that s3torchconnector defines."""
    for module, names in SURFACE.items():
        for name, members in names.items():
            if isinstance(members, dict):
                for member, expected in members.items():
                    yield module, name, member, expected


def _spoken(parameter: str) -> str:
    return parameter.removesuffix(" POSITIONAL_OR_KEYWORD")  # ``self`` has no kind in what is no function


@pytest.mark.usefixtures("installed")
def test_signatures():
    """Each method takes the arguments of s3torchconnector, at their places, by their names, with their defaults."""
    problems = []
    for module, name, member, expected in _classes():
        if expected is None or f"{name}.{member}" in _OTHERWISE:
            continue
        given = parameters(inspect.getattr_static(getattr(importlib.import_module(module), name), member)) or ["self"]
        placed = [each for each in expected if "POSITIONAL" in each]
        by_name = set(expected) - set(placed)
        if [_spoken(each) for each in given[: len(placed)]] != [_spoken(each) for each in placed]:
            problems.append((name, member, expected, given))
        if not by_name <= set(given):
            problems.append((name, member, by_name, given))
    assert problems == []


@pytest.mark.usefixtures("installed")
def test_attributes():
    """An instance has each public attribute and property of s3torchconnector's."""
    client = importlib.import_module("s3torchconnector._s3client")
    package = importlib.import_module("s3torchconnector")
    made = {
        "S3Client": client.S3Client("us-east-1"),
        "S3MapDataset": package.S3MapDataset.from_objects([], region="us-east-1", endpoint="http://127.0.0.1:9"),
        "S3IterableDataset": package.S3IterableDataset.from_objects([], region="us-east-1"),
        "S3ClientConfig": package.S3ClientConfig(),
        "SequentialS3Reader": client.S3Client("us-east-1").get_object("bucket", "key"),
    }
    seen = {(name, member) for _, name, member, _ in _classes() if name in made and not hasattr(made[name], member)}
    assert seen == set()
    assert (made["S3MapDataset"].region, made["S3MapDataset"].endpoint) == ("us-east-1", "http://127.0.0.1:9")
    assert made["S3ClientConfig"].throughput_target_gbps == 10.0
    assert made["S3ClientConfig"].connections == s3torch.S3ClientConfig().connections


# What s3torchconnector has pickled


@pytest.fixture
def pickled(installed: None) -> Any:
    """Returns what s3torchconnector has pickled: ``pickled(name)``."""
    return lambda name: pickle.loads(base64.b64decode(PICKLES[name]))


@pytest.fixture
def package(installed: None) -> Any:
    """What stands for s3torchconnector."""
    return importlib.import_module("s3torchconnector")


def test_every_pickle_is_tested():
    """The tests below look at all that was pickled."""
    source = Path(__file__).read_text()
    assert [name for name in PICKLES if f'pickled("{name}")' not in source] == []


def test_pickled_config(pickled: Any, package: Any):
    """A configuration of s3torchconnector becomes one of ours, equal to one that is made here."""
    assert pickled("config") == package.S3ClientConfig(part_size=16 * 1024 * 1024, force_path_style=True)
    assert pickled("config").connections == package.S3ClientConfig().connections == 128


def test_pickled_client(pickled: Any):
    """A client keeps region, configuration and comments; what was native is dropped."""
    client = pickled("client")
    assert isinstance(client, S3Client)
    assert client.region == "eu-west-1"
    assert client.s3client_config == pickled("config")
    assert client.user_agent_prefix.endswith("(dcp; 1)")


def test_pickled_checkpoint(pickled: Any, package: Any):
    """An S3Checkpoint keeps region, endpoint and configuration, and makes readers of ours."""
    checkpoint = pickled("checkpoint")
    assert type(checkpoint) is package.S3Checkpoint
    assert (checkpoint.region, checkpoint.endpoint) == ("eu-west-1", "http://127.0.0.1:9")
    assert isinstance(checkpoint.reader("s3://bucket/key"), S3Reader)


def test_pickled_map_dataset(pickled: Any, package: Any):
    """A dataset that was not listed yet is listed here, by us."""
    dataset = pickled("map")
    assert type(dataset) is package.S3MapDataset
    assert repr(dataset) == "<S3MapDataset not listed yet, reader sequential>"
    assert (dataset.region, dataset.endpoint) == ("eu-west-1", "http://127.0.0.1:9")
    assert dataset.client.s3client_config == pickled("config")


def test_pickled_listing(pickled: Any, package: Any):
    """A dataset that was listed keeps its objects and their sizes, and its kind of reader."""
    dataset = pickled("listed")
    assert [(each.bucket, each.key) for each in dataset.objects] == [("bucket", "p/a"), ("bucket", "p/b")]
    assert dataset[0].size == 3
    assert type(dataset[0]).__name__ == "RangedS3Reader"
    again = pickle.loads(pickle.dumps(dataset))
    assert list(again.objects) == list(dataset.objects)


def test_pickled_iterable_dataset(pickled: Any, package: Any):
    """An iterable dataset keeps its objects and that it is sharded."""
    dataset = pickled("iterable")
    assert type(dataset) is package.S3IterableDataset
    assert [(each.bucket, each.key) for each in dataset.objects] == [("bucket", "a"), ("other", "b")]
    assert "sharding on" in repr(dataset)


def test_pickled_constructors(pickled: Any, package: Any):
    """Constructors of readers keep their kinds and arguments."""
    kind = package.S3ReaderConstructor.get_reader_type_string
    assert kind(pickled("sequential")) == "sequential"
    assert kind(pickled("ranged")) == "range_based"
    assert pickled("ranged").keywords == {"buffer_size": 0}
    assert kind(pickled("dcp_optimized")) == "dcp_optimized"
    assert kind(partial(print)) == "unknown"


def test_pickled_facts(pickled: Any, package: Any):
    """What was listed or asked about keeps its values, and an error its text."""
    info, head = pickled("object_info"), pickled("head")
    assert (info.key, info.etag, info.size, info.storage_class) == ("p/a", '"etag"', 3, "STANDARD")
    assert (info.restore_status.in_progress, info.restore_status.expiry) == (False, 5)
    assert (head.etag, head.size, head.last_modified, head.restore_status) == ('"etag"', 3, 1700000000, None)
    assert isinstance(pickled("error"), package.S3Exception)
    assert str(pickled("error")) == "Service error: The key does not exist"

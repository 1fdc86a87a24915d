"""What programs and tools find out about s3torchconnector: by ``make compare`` about s3torchconnector itself, too."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from s3torch.compat.installing import NAMES, PACKAGES
from s3torch.compat.version import __version__
from tests.compat.connector import IS_REAL, SOURCE, importable, run_program

ours_only = pytest.mark.skipif(IS_REAL, reason="says nothing of s3torchconnector")


@pytest.fixture
def installed() -> Iterator[None]:
    """This process with s3torchconnector, whichever that is."""
    with importable():
        yield


def test_versions():
    """A program finds its version, and that requirements of it are met or are not, in each of its processes."""
    assert json.loads(run_program("versions")) == {
        "versions": ["1.5.0", "1.5.0"],
        "attributes": ["1.5.0", "1.5.0"],
        "at least 1.4": True,
        "extras": True,
        "fits": [True, True],
        "does not fit": [False, False],
        "listed": ["s3torchconnector", "s3torchconnectorclient"],
    }


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("line", "expected"), [("s3torchconnector>=1.4", True), ("s3torchconnector>=2.0", False)])
def test_requirements_of_lightning(line: str, expected: bool):
    """Lightning's way to ask for a version gives the right answer."""
    requirements = pytest.importorskip("lightning_utilities.core.imports")
    assert bool(requirements.RequirementCache(line)) is expected


@pytest.mark.usefixtures("installed")
def test_requirements_of_pkg_resources():
    """The old way to ask for a version does, too."""
    if importlib.util.find_spec("pkg_resources") is None:
        pytest.skip("setuptools has no pkg_resources any more")
    program = "import pkg_resources as p; print([each.version for each in p.require('s3torchconnector>=1.4')][:1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *([] if IS_REAL else [str(PACKAGES)])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['1.5.0']\n", done.stderr


@ours_only
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_claimed_without_installing(name: str):
    """As long as the drop-in is not installed, nothing says that s3torchconnector is."""
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version(name)


@ours_only
def test_pip_does_not_see_it():
    """Neither does pip."""
    command = [sys.executable, "-m", "pip", "list", "--format=json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert not {each["name"] for each in listed} & set(NAMES)


@ours_only
@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_of_the_version_that_is_followed(name: str):
    """The metadata has the version of version.py, in its name as well, and no record for a tool that uninstalls."""
    [found] = metadata.distributions(name=name, path=[str(PACKAGES)])
    folder = PACKAGES / f"{name}-{__version__}.dist-info"
    assert (found.version, found.name, found.files) == (__version__, name, None)
    assert {path.name for path in folder.iterdir()} == {"METADATA", "top_level.txt"}
    assert (folder / "top_level.txt").read_text().split() == [name]


# Types

PROGRAM = """
from s3torchconnector import S3ClientConfig, S3Exception, S3MapDataset, S3ReaderConstructor
from s3torchconnector._s3client import S3Client

config = S3ClientConfig(part_size=16 * 1024 * 1024)
reveal_type(config)
reveal_type(S3Client("us-east-1", s3client_config=config).head_object("b", "k").size)
reveal_type(S3MapDataset.from_prefix("s3://b/", region="r", reader_constructor=S3ReaderConstructor.sequential()))
reveal_type(S3Exception().code)
config.nothing
"""


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy has found out about torch; it takes a while."""
    pytest.importorskip("mypy")
    return tmp_path_factory.mktemp("mypy")


# What mypy finds out about torch takes most of the time, and changes nothing of what is asked here.
_WITHOUT_TORCH = """
[mypy]
strict = True
[mypy-torch.*,numpy.*,botocore.*]
follow_imports = skip
"""


@ours_only
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(_WITHOUT_TORCH, id="without torch"),
        pytest.param("[mypy]\nstrict = True", id="whole", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("way", ["run", "path"])
def test_types(mypy_cache: Path, tmp_path: Path, way: str, config: str):
    """A program's types are seen by mypy if s3torch.compat runs it, or if it is told the folder of the packages."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(config)
    runner, path = (["-m", "s3torch.compat"], "") if way == "run" else ([], str(PACKAGES))
    done = subprocess.run(
        [sys.executable, *runner, "-m", "mypy", "--cache-dir", str(mypy_cache), "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SOURCE, "MYPYPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert said[:-1] == [  # the last line counts
        'note: Revealed type is "s3torch.compat.config.S3ClientConfig"',
        'note: Revealed type is "int"',
        'note: Revealed type is "s3torch.compat.datasets.S3MapDataset"',
        'note: Revealed type is "str | None"',
        'error: "S3ClientConfig" has no attribute "nothing"  [attr-defined]',
    ], done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("installed")
def test_types_are_announced(name: str):
    """The package says to type checkers that it has types (PEP 561)."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    assert (Path(found.origin).parent / "py.typed").is_file()

"""What all tests share: how much Hypothesis tries, who runs which, and how the documentation's code blocks are run.

`make test` gives the tests to two workers for each core (pytest-xdist), whole files at a time: what a file's fixtures
start is started once, and the code blocks of a document follow each other. A worker has servers of its own. To run all
in one process, as `--pdb` does by itself: `make test ARGS="-n 0"`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from s3torch import S3Client
from s3torch.testing import LocalS3

_FIRST = (
    # Sees the memory of its process grow, which it does not where others have left enough of it.
    "test_measure.py",
    # Those that take more than 5 s, the longest first: a wrong or missing one costs a little time.
    "test_accelerate.py",
    "test_torchrun.py",
    "test_running.py",
    "test_save_and_load.py",
    "test_group.py",
    "test_save_sharded.py",
    "test_hugging_face.py",
    "test_one_listing.py",
    "test_ranks.py",
    "test_job.py",
    "test_soak.py",
    "test_datasets.py",
    "test_saving_process.py",
    "test_command.py",
    "test_node.py",
    "test_believed_answers.py",
    "test_process.py",
    "test_iterable.py",
    "test_strict.py",
    "test_client_faults.py",
    "test_reliability.py",
    "test_composite.py",
    "test_readers.py",
    "test_writer.py",
    "test_habits.py",
    "test_cli.py",
    "test_addressing.py",
    "test_order.py",
    "test_simulate.py",
    "test_oracle.py",
    "test_networks.py",
    "test_any_answer.py",
    "test_adaptive.py",
    "test_finding.py",
    "test_found.py",
    "test_listing.py",
    "test_killed.py",
    "test_loader.py",
    "test_metadata.py",
    "test_table_file.py",
    "test_bad_samples.py",
    "test_mutation.py",
    "test_lightning.py",
    "test_lightning_example.py",
    "test_resuming.py",
    "test_loading.py",
    "test_killed_ranks.py",
    "test_ownership.py",
    "test_security.py",
    "test_express.py",
    "test_defects.py",
    "test_engines.py",
    "test_series_model.py",
    "test_addresses.py",
    "test_sharded.py",
    "test_exports.py",
    "test_map.py",
    "test_integrity.py",
    "test_outline.py",
    "test_grain.py",
    "test_streams.py",
    "test_uploads.py",
    "test_schedules.py",
    "test_systems.py",
    "test_local.py",
    "test_gpu.py",
)
_WORKERS_OF_A_CORE = 2  # a test waits almost as long as it computes: for processes that start, servers, other ranks
_MOST_WORKERS = 8
_MEMORY_OF_A_WORKER = 3 * 1024**3  # bytes: with torch and its servers it took up to 2.6 GB

# A worker, and each process that it starts, has one core: threads of torch would wait for each other, and spin.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# "ci" tries the same examples each time, so that a change is never blamed for another one's bug; "dev" tries new ones.
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("dev", max_examples=50, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for each core, but no more than files are named; 0 is this process, which one can debug and watch."""
    if config.getoption("trace") or config.getoption("capture") == "no":
        return 0
    paths = [Path(each.partition("::")[0]) for each in config.args]
    files = len(set(paths)) if all(path.is_file() for path in paths) else _MOST_WORKERS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    workers = min(cores * _WORKERS_OF_A_CORE, files, _MOST_WORKERS, max(1, memory // _MEMORY_OF_A_WORKER))
    return workers if workers > 1 else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with the files that take longest, so that none has much to do when the others have ended."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(_FIRST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_configure(config: pytest.Config) -> None:
    """Python warns of forks beside threads: each worker has one, which waits for what to run and holds no lock."""
    if hasattr(config, "workerinput"):
        config.addinivalue_line("filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="session")
def server() -> Iterator[LocalS3]:
    """A running server with a bucket for tests and one for examples; the environment does not know of it."""
    with LocalS3() as server:
        server.create_bucket("tests")
        server.create_bucket("my-bucket")
        yield server


@pytest.fixture(scope="module")
def documented_server(server: LocalS3) -> Iterator[None]:
    """The server that the documentation's examples talk to, with what they read in it."""
    with server.activated():
        client = S3Client()
        objects = {f"images/{number}.png": bytes([number]) * 100 for number in range(4)}
        objects["archive.bin"] = bytes(range(256)) * 5000
        for key, content in objects.items():
            with client.put_object("my-bucket", key) as writer:
                writer.write(content)
        client.close()
        path = list(sys.path)
        yield
        sys.path[:] = path  # docs/migrate.md has installed packages that other tests must not find
        for name in [name for name in sys.modules if name.startswith("s3torchconnector")]:
            del sys.modules[name]


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"], fixtures=["documented_server"]
).pytest()

"""One listing for all ranks of a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed

from s3torch import S3ClientConfig, S3MapDataset
from s3torch.datasets import job
from s3torch.datasets.job import Address, JobListing, _Meeting
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.errors import AccessDeniedError, DeadlineError, S3Error
from tests.datasets.test_one_listing import Growing
from tests.support.server import ScriptedServer, fail

_PROGRAM = Path(__file__).with_name("program_of_ranks.py")
TABLE = ObjectTable(S3BucketKeyData("b", f"k/{number}") for number in range(1000))


def _run(ranks: int, *arguments: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            str(_PROGRAM),
            *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ranks_of_torchrun_list_once(tmp_path):
    """Each dataset of a job is listed once, however its ranks and their workers start; all read one table."""
    bucket = Growing()
    with ScriptedServer(bucket) as server:
        _run(2, server.endpoint, str(tmp_path))
    read: dict[str, list[list[str]]] = defaultdict(list)
    for path in sorted(tmp_path.glob("*.json"), key=lambda path: path.stat().st_mtime):
        read[path.name.split(".")[0]].append(json.loads(path.read_text()))
    assert len(read) == 9
    assert bucket.listings == len(read)
    for listing, (case, keys) in enumerate(read.items(), 1):
        assert len(keys) == 2, case
        due = bucket.keys(listing)
        if case == "workers first":  # whose indices are the first 20
            due = due[:20]
        if case == "sampler" and len(due) % 2:  # which torch makes even, by one that comes twice
            due = [*due, due[0]]
        assert sorted(keys[0] + keys[1]) == sorted(due), case


# --- The meeting -----------------------------------------------------------------------------------------------------


@pytest.fixture
def address():
    """Where ranks meet."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield Address("127.0.0.1", store.port, "0")
    del store


@pytest.fixture
def ranks(address, monkeypatch):
    """Two ranks of a job, as they know the listing of one dataset."""
    monkeypatch.setattr(job, "_address", lambda: address)
    monkeypatch.setattr(job, "_made", job.Counter())
    first = JobListing("s3://b/k/")
    monkeypatch.setattr(job, "_made", job.Counter())
    return first, JobListing("s3://b/k/")


def _never() -> ObjectTable:
    raise AssertionError("listed twice")


def test_the_first_lists_for_all(ranks, monkeypatch):
    """A table of several pieces arrives whole; what is listed later under another name is another one."""
    monkeypatch.setattr(job, "_PIECE", 100)
    first, second = ranks
    assert first.agree("a", lambda: TABLE) is TABLE
    assert list(second.agree("a", _never)) == list(TABLE)
    assert second.agree("b", ObjectTable) is not None
    assert len(first.agree("b", _never)) == 0


def test_an_error_is_everybodys(ranks):
    """Whoever waits gets the error of the one who lists, of its class; the next attempt begins anew."""

    def denied() -> ObjectTable:
        raise AccessDeniedError("Listing s3://b/k/ failed: no.")

    first, second = ranks
    with pytest.raises(AccessDeniedError, match=r"^Listing s3://b/k/ failed: no\.$"):
        first.agree("a", denied)
    with pytest.raises(AccessDeniedError, match="The rank that lists for all has failed: Listing s3://b/k/ failed"):
        second.agree("a", _never)
    assert second.agree("a", lambda: TABLE) is TABLE
    assert list(first.agree("a", _never)) == list(TABLE)


def test_an_error_of_a_program(ranks):
    """An error that is none of ours reaches the others by name; an interrupt does, too."""
    first, second = ranks
    for number, error in enumerate((ZeroDivisionError("by 0"), KeyboardInterrupt())):

        def failing(error: BaseException = error) -> ObjectTable:
            raise error

        with pytest.raises(type(error)):
            first.agree(str(number), failing)
        with pytest.raises(S3Error, match=type(error).__name__):
            second.agree(str(number), _never)


def test_a_rank_that_was_killed(ranks, address, monkeypatch):
    """Whoever waits for a rank that leaves nothing is told so."""
    monkeypatch.setattr(job, "_PATIENCE", 0.0)
    first, second = ranks
    assert _Meeting(address, f"{first._name}/a/0").is_first
    with pytest.raises(DeadlineError, match=r"has left no table in 0 s\. It may have been killed"):
        second.agree("a", _never)


def test_nobody_is_there(ranks, monkeypatch):
    """That the store does not answer is an error that says what to do."""
    monkeypatch.setattr(job, "_CONNECT_TIMEOUT", timedelta(milliseconds=300))
    monkeypatch.setattr(job, "_address", lambda: Address("127.0.0.1", 9, "0"))
    with pytest.raises(S3Error, match=r"cannot meet at 127.0.0.1:9 to list the objects once(.|\n)*from_table"):
        ranks[0].agree("a", _never)


def test_datasets_are_told_apart(address, monkeypatch):
    """The second dataset of a prefix has a listing of its own, and so has another filter; nothing else is shared."""
    monkeypatch.setattr(job, "_address", lambda: address)
    names = {JobListing(source)._name for source in ("a", "a", "b")}
    assert len(names) == 3
    assert JobListing("c").__getstate__()["_known"] == address


def test_a_process_without_ranks_meets_nobody(monkeypatch):
    """Alone nothing is asked for, whatever torchrun has set for one rank."""
    assert job._address() is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert job._address() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "h")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert job._address() == Address("h", 1, "0")


def test_a_group_over_a_file_has_no_place(tmp_path):
    """Ranks that meet by a file list each by itself, as before."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert job._address() is None
    finally:
        torch.distributed.destroy_process_group()


def test_a_listing_that_fails_in_a_job(ranks, monkeypatch):
    """The dataset of a rank that waits raises what the listing of the other one raised."""
    with ScriptedServer(fail(403, "AccessDenied")) as server:
        datasets = [
            S3MapDataset.from_prefix(
                "s3://b/k/",
                region="us-east-1",
                endpoint=server.endpoint,
                s3client_config=S3ClientConfig(unsigned=True, hedging=False),
            )
            for _ in ranks
        ]
        for dataset, listing in zip(datasets, ranks, strict=True):
            dataset._job_listing = listing
        with pytest.raises(AccessDeniedError) as first:
            len(datasets[0])
        with pytest.raises(AccessDeniedError, match="rank that lists for all has failed") as second:
            len(datasets[1])
        assert str(first.value) in str(second.value)

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
from s3torch._aws.listing import ObjectInfo
from s3torch.datasets import job
from s3torch.datasets.job import Address, JobListing, _Meeting
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.rows import Rows
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
    monkeypatch.setattr(job, "_PATIENCE", 60.0)  # a test that waits for nothing fails
    monkeypatch.setattr(job, "_address", lambda: address)
    monkeypatch.setattr(job, "_made", job.Counter())
    first = JobListing("s3://b/k/")
    monkeypatch.setattr(job, "_made", job.Counter())
    return first, JobListing("s3://b/k/")


def _never() -> ObjectTable:
    raise AssertionError("listed twice")


def _told(listing: JobListing, name: str) -> int | S3Error:
    """Return how many objects a rank is told of, or the error that it is told."""
    try:
        return len(listing.agree(name, _never))
    except S3Error as error:
        return error


def denied() -> ObjectTable:
    """Fail as a listing that is not permitted."""
    raise AccessDeniedError("Listing s3://b/k/ failed: no.")


def test_the_first_lists_for_all(ranks, monkeypatch):
    """A table of several pieces arrives whole; what is listed later under another name is another one."""
    monkeypatch.setattr(job, "_PIECE", 100)
    first, second = ranks
    assert first.agree("a", lambda: TABLE) is TABLE
    assert list(second.agree("a", _never)) == list(TABLE)
    assert second.agree("b", ObjectTable) is not None
    assert len(first.agree("b", _never)) == 0


def test_etags_of_the_table_reach_all_ranks(ranks):
    """A table that pins its objects pins them on each rank."""
    first, second = ranks
    pinned = ObjectTable([S3BucketKeyData("b", "k", ObjectInfo("k", '"e"', 1, 0))], etags=True)
    first.agree("a", lambda: pinned)
    assert list(second.agree("a", _never)) == list(pinned)
    assert second.agree("a", _never).has_etags


def test_datasets_that_pin_have_a_listing_of_their_own(monkeypatch):
    """One that does not pin, and was made in another order on another rank, does not give it a table without ETags."""
    monkeypatch.setattr(job, "_made", job.Counter())
    made = [S3MapDataset.from_prefix("s3://b/k/", pin_etags=pins) for pins in (True, False)]
    monkeypatch.setattr(job, "_made", job.Counter())
    other = [S3MapDataset.from_prefix("s3://b/k/", pin_etags=pins) for pins in (False, True)]
    names = [dataset._job_listing._name for dataset in (*made, *reversed(other))]
    assert names[0] == names[2] != names[1] == names[3]


def test_an_error_is_everybodys(ranks):
    """Whoever waits gets the error of the one who lists, of its class; the next attempt begins anew."""
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
    assert _Meeting(address, f"{first._name}/0/a/0", ("", ""))._add("asked") == 1
    with pytest.raises(DeadlineError, match=r"has left no table in 0 s\. It may have been killed"):
        second.agree("a", _never)


def test_a_table_that_stays_is_left_once(ranks, monkeypatch):
    """In each epoch of a stream that finds the same objects the store keeps no other copy of the table."""
    first, second = ranks
    sent: list[str] = []
    leave = _Meeting._set
    monkeypatch.setattr(_Meeting, "_set", lambda self, key, value: (sent.append(key), leave(self, key, value)))
    more = ObjectTable([*TABLE, S3BucketKeyData("b", "new")])
    for number, table in enumerate((TABLE, TABLE, TABLE, more, more)):
        one, other = (first, second) if number % 2 else (second, first)
        assert one.agree(f"iteration {number}", lambda table=table: table) is table
        assert list(other.agree(f"iteration {number}", _never)) == list(table)
    assert sent == ["piece 0", "pieces", "same", "same", "piece 0", "pieces", "same"]


def _labelled(labels: str) -> ObjectTable:
    rows = Rows("label")
    for number, label in enumerate(labels):
        rows.add("b", f"k/{number}", None, None, label)
    return rows.table()


def test_tables_of_other_labels_are_others(ranks):
    """A table of the same objects with other labels is no table that stays."""
    first, second = ranks
    for name, labels in enumerate(("ab", "ab", "ba", "ab")):
        table = _labelled(labels)
        assert table.digest == _labelled("ab").digest
        first.agree(str(name), lambda table=table: table)
        assert second.agree(str(name), _never)._numbered_labels() == table._numbered_labels()


def test_a_signal_handler_lists_in_the_middle_of_the_listing(ranks):
    """It gets a table at once, and not after the listing that waits for it; what it left is everybody's."""
    first, second = ranks
    inner: list[ObjectTable] = []

    def interrupted() -> ObjectTable:
        inner.append(first.agree("a", lambda: TABLE))
        return ObjectTable()

    assert list(first.agree("a", interrupted)) == list(inner[0]) == list(second.agree("a", _never)) == list(TABLE)


def test_a_signal_handler_fails_in_the_middle_of_the_listing(ranks):
    """Its error is its own: the listing around it goes on."""
    first, second = ranks

    def interrupted() -> ObjectTable:
        with pytest.raises(AccessDeniedError):
            first.agree("a", denied)
        return TABLE

    assert first.agree("a", interrupted) is TABLE
    assert list(second.agree("a", _never)) == list(first.agree("a", _never)) == list(TABLE)


def test_an_interrupt_anywhere_leaves_nobody_waiting(ranks, monkeypatch):
    """Wherever the rank that lists is interrupted, the others get its table or its error."""
    monkeypatch.setattr(job, "_PATIENCE", 0.0)  # who waits now waits for ever
    first, second = ranks
    asked = _Meeting._asked
    for place in range(8):
        left = [place]

        def interrupted(self, ask, left=left):
            left[0] -= 1
            if left[0] == 0:
                asked(self, ask)
                raise KeyboardInterrupt
            return asked(self, ask)

        monkeypatch.setattr(_Meeting, "_asked", interrupted)
        reached = True
        try:
            first.agree(f"{place}", lambda place=place: ObjectTable([S3BucketKeyData("b", str(place))]))
        except KeyboardInterrupt:
            reached = False
        monkeypatch.setattr(_Meeting, "_asked", asked)
        if place == 1 and not reached:
            continue  # there was no meeting yet
        told = _told(second, f"{place}")
        assert told == 1 or (not reached and "KeyboardInterrupt" in str(told))
    assert reached  # the last places lie behind the end


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

"""The example for torchrun: a job of several ranks that is killed, and goes on with another number of them."""

from __future__ import annotations

import pytest

from tests.engines.launching import check, train


# Each rank is a process of its own that imports torch, and one more starts them: of each kind one number is daily.
@pytest.mark.parametrize(
    ("options", "later"),
    [
        pytest.param([], [1], id="ddp"),
        pytest.param(["--fsdp"], [3], id="fsdp2"),
        pytest.param([], [1, 3], id="ddp, both", marks=pytest.mark.soak),
        pytest.param(["--fsdp"], [1, 3], id="fsdp2, both", marks=pytest.mark.soak),
    ],
)
def test_a_job_is_killed_and_goes_on(data, tmp_path, options, later):
    """What two ranks had received when they saved, and what one or three receive later: each sample once an epoch."""
    uri = f"s3://tests/engines/run{''.join(options)}-{len(later)}"
    name, *arguments = ["train_torchrun.py", data, uri, *options]
    killed = train(name, tmp_path / "killed", 2, *arguments, kill=True)
    for ranks in later:
        # They save nothing, so that both go on from the same state.
        check(killed, train(name, tmp_path / str(ranks), ranks, *arguments, "--save-every=1000"))

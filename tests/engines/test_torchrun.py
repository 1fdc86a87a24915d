"""The example for torchrun: a job of several ranks that is killed, and goes on with another number of them."""

from __future__ import annotations

import pytest

from tests.engines.launching import check, train


@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
def test_a_job_is_killed_and_goes_on(data, tmp_path, options):
    """What two ranks had received when they saved, and what one or three receive later: each sample once an epoch."""
    name, *arguments = ["train_torchrun.py", data, "s3://tests/engines/run" + "".join(options), *options]
    killed = train(name, tmp_path / "killed", 2, *arguments, kill=True)
    for ranks in (1, 3):
        # They save nothing, so that both go on from the same state.
        check(killed, train(name, tmp_path / str(ranks), ranks, *arguments, "--save-every=1000"))

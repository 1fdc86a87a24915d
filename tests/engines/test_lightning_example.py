"""The example for Lightning; what a Trainer does with an S3DataLoader is in tests/datasets/test_engines.py."""

from __future__ import annotations

from tests.engines.launching import check, train


def test_a_job_is_killed_and_goes_on(data, tmp_path):
    """Two processes of a Trainer are killed, and two go on where it was: each sample once an epoch."""
    name, *arguments = ["train_lightning.py", data, "s3://tests/engines/run-lightning"]
    killed = train(name, tmp_path / "killed", 2, *arguments, kill=True)
    check(killed, train(name, tmp_path / "later", 2, *arguments))

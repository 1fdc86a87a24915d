"""Ranks that are killed in the middle of a model that all write together."""

from __future__ import annotations

import json
import logging
import random

import pytest

from s3torch.checkpoint import clean
from s3torch.safetensors import load_file
from tests.checkpoint import killed_ranks as these
from tests.checkpoint.test_group import run  # noqa: F401  # a fixture

pytestmark = pytest.mark.usefixtures("s3")

_log = logging.getLogger(__name__)


def _keys(client, bucket, prefix):
    return {info.key for page in client.list_objects(bucket, prefix) for info in page.object_info}


def _named(client, bucket, prefix, kind):
    """The keys that the model has."""
    if kind == "one file":
        return {f"{prefix}model.safetensors"}
    index = f"{prefix}model.safetensors.index.json"
    files = json.loads(client.get_object(bucket, index).read())["weight_map"].values()
    return {index, *(f"{prefix}{file}" for file in files)}


KINDS = {"one file": True, "files": False, "hugging face": False}
# Half of all, once each, are enough for each day.
DAILY = {("one file", 0), ("files", 1), ("hugging face", 0)}
CELLS = [
    pytest.param(
        kind, has_server, victim, kills, marks=() if kills == 1 and (kind, victim) in DAILY else pytest.mark.soak
    )
    for kind, has_server in KINDS.items()
    for victim in (0, 1)
    for kills in (1, 10)
]


@pytest.mark.parametrize(("kind", "has_server", "victim", "kills"), CELLS)
def test_killed(run, client, bucket, prefix, kind, has_server, victim, kills):  # noqa: F811
    """Whenever a rank is killed, a whole model is there, the last or the one before, and the other rank is told."""
    uri = f"s3://{bucket}/{prefix}model.safetensors"
    folder = f"s3://{bucket}/{prefix}"
    chance = random.Random(f"{kind} {victim} {kills}")
    left = finished = 0
    for kill in range(kills):
        first, seconds = 100 * (kill + 1), chance.uniform(0.01, 0.25)
        where = folder if kind == "hugging face" else uri
        found = run(2, these.save_until_killed, where, kind, first, victim, seconds, has_server=has_server)
        assert found[victim] is None
        name, text, number = found[1 - victim]
        _log.info("after %.3f s, in model %d: %s: %s", seconds, number, name, text)
        if kind == "hugging face" and name not in ("DeadlineError", "_RankLostError"):
            assert name == "RuntimeError"  # torch's own collectives find that a rank is gone, and cannot name it
        else:
            assert f"Rank {victim} " in text or (has_server and victim == 0 and "mostly rank 0, has ended" in text)
        loaded = these.number_of(load_file(folder if kind != "one file" else uri, client=client))
        assert loaded in (number - 1, number)
        finished += loaded == number
        named = _named(client, bucket, prefix, kind)
        assert named <= _keys(client, bucket, prefix)
        left += len(clean(folder, older_than=0, client=client))
        assert _keys(client, bucket, prefix) == named
        assert client.list_multipart_uploads(bucket, prefix) == []
        assert these.number_of(load_file(folder if kind != "one file" else uri, client=client)) == loaded
    _log.info("%d uploads and files were left, %d models were there nevertheless", left, finished)
    if victim == 0:
        assert left or kills == 1
    elif kind != "hugging face":  # torch's own collectives may fail where no code of a writer runs
        assert not left  # the first rank has aborted all

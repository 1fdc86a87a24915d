"""Tests that what was written down of s3torchconnector is so: by ``make compare``, where it is installed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import s3torch
from s3torch.compat.installing import real_version
from tests.compat.pickles import made

pytestmark = pytest.mark.skipif(real_version() is None, reason="s3torchconnector is not installed here")

HERE = Path(__file__).parent

# What the drop-in makes of objects that s3torchconnector pickles now.
_UNPICKLE = """
import base64, json, pickle, sys
for name, text in json.load(sys.stdin).items():
    print(name, type(pickle.loads(base64.b64decode(text))).__module__)
"""


def test_surface():
    """Names and signatures are those in surface.json."""
    command = [sys.executable, "-m", "tests.compat.surface"]  # another process: here more may have been imported
    written = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True, check=True).stdout
    assert written == (HERE / "surface.json").read_text()


def test_pickles(tmp_path: Path):
    """What it pickles now unpickles as ours, and nothing else is pickled than what is in pickles.json."""
    written = {name: base64.b64encode(pickle.dumps(value)).decode() for name, value in made().items()}
    assert written.keys() == json.loads((HERE / "pickles.json").read_text()).keys()
    (tmp_path / "program.py").write_text(_UNPICKLE)
    ended = subprocess.run(
        [sys.executable, "-m", "s3torch.compat", "--replace", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(s3torch.__file__).parent.parent), *sys.path])},
        input=json.dumps(written),
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split() for line in ended.stdout.splitlines())
    assert found.keys() == written.keys()
    assert [name for name, module in found.items() if not module.startswith(("s3torch.", "functools"))] == []

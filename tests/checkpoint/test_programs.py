"""Programs of torch.export and torch.jit, written to a writer and read from a reader."""

from __future__ import annotations

import io
import logging
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from s3torch import S3Checkpoint
from s3torch.errors import CheckpointFormatError

pytestmark = [
    pytest.mark.usefixtures("s3"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.jit, and of what torch.export uses
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}"


def _exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (torch.rand(1, 300),))


def test_an_exported_program(uri):
    """A program that was saved to memory and written from there is loaded from a reader."""
    model, checkpoint, buffer = nn.Linear(300, 200), S3Checkpoint(), io.BytesIO()
    torch.export.save(_exported(model), buffer)
    with checkpoint.writer(uri) as writer:
        writer.write(buffer.getbuffer())
    with checkpoint.reader(uri) as reader:
        program = torch.export.load(reader)
    assert torch.equal(program.state_dict["weight"], model.weight)
    with pytest.raises(CheckpointFormatError, match=rf"{uri} .*torch\.export\.load\(checkpoint\.reader"):
        checkpoint.load(uri)


@pytest.mark.skipif(find_spec("torch.export.pt2_archive") is None, reason="older versions write, and do not seek")
def test_an_exported_program_to_a_writer(uri, caplog):
    """torch.export.save seeks in what it has written; the error says what to do, and nothing appears."""
    caplog.set_level(logging.CRITICAL)
    checkpoint = S3Checkpoint()
    with (
        pytest.raises(io.UnsupportedOperation, match=r"cannot seek.*torch\.export\.save.*io\.BytesIO"),
        checkpoint.writer(uri) as writer,
    ):
        torch.export.save(_exported(nn.Linear(300, 200)), writer)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(uri)


def test_a_scripted_program(uri):
    """torch.jit saves to a writer, and loads from a reader."""
    model, checkpoint = nn.Linear(300, 200), S3Checkpoint()
    with checkpoint.writer(uri) as writer:
        torch.jit.save(torch.jit.trace(model, torch.rand(1, 300)), writer)
    with checkpoint.reader(uri) as reader:
        loaded = torch.jit.load(reader)
    assert torch.equal(loaded.weight, model.weight)
    with pytest.raises(CheckpointFormatError, match=rf"{uri} .*torch\.jit\.load\(checkpoint\.reader"):
        checkpoint.load(uri)

"""The model streamer of Run:ai: C++, with the C++ SDK of AWS; it loads safetensors only."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from benchmarks.clients.checkpoints import loading
from benchmarks.registry import Work, enter
from benchmarks.site import Effort, Site
from benchmarks.state import SAFETENSORS

if TYPE_CHECKING:
    import torch

__all__: list[str] = []


def _load(concurrency: int, site: Site, _: Effort) -> Work:
    """``SafetensorsStreamer`` with this many threads; its tensors are kept, as its buffer holds them all."""
    os.environ.update(
        RUNAI_STREAMER_CONCURRENCY=str(concurrency),
        RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING=str(int(not site.path_style)),
    )
    if site.endpoint is not None:
        os.environ["AWS_ENDPOINT_URL"] = site.endpoint
    from runai_model_streamer import SafetensorsStreamer

    def load(key: str) -> dict[str, torch.Tensor]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(f"s3://{site.bucket}/{key}")
            return dict(streamer.get_tensors())

    return loading(site, load, SAFETENSORS)


for _concurrency in (1, 4, 16):
    _ready = functools.update_wrapper(functools.partial(_load, _concurrency), _load)
    enter(f"runai, concurrency {_concurrency}", "safetensors", needs="runai_model_streamer")(_ready)

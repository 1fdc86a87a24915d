"""Work that clients share where ranks load or save a distributed checkpoint. It is done by each rank.

A rank has made its reader and loaded a small checkpoint with it before, and its tensors are there, as those of a model
are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.ranks import join
from benchmarks.registry import Done, Work
from benchmarks.sharded import SHARDED, WARM_UP_LAYERS, WARM_UP_SIZE, check_shards, make_shards
from benchmarks.site import Site
from benchmarks.state import WARM_UP

__all__ = ["all_layers", "loading_sharded", "one_layer", "saving_sharded"]

_SAVED = "saved"


def all_layers(site: Site) -> Sequence[int]:
    """Return the numbers of all tensors."""
    return range(site.tensors)


def one_layer(site: Site) -> Sequence[int]:
    """Return the number of the one in the middle."""
    return [site.tensors // 2]


def loading_sharded(site: Site, layers: Sequence[int], make_reader: Callable[[str], Any]) -> Work:
    """Return work that loads some tensors by ``dcp.load``, and looks at both ends of each shard.

    Args:
        site: From where.
        layers: The numbers of the tensors.
        make_reader: Gets the URI of a checkpoint; returns a StorageReader.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_loader import load

    join()
    uri = f"s3://{site.bucket}/{WARM_UP}{SHARDED}"
    reader = make_reader(uri)
    load(make_shards(WARM_UP_LAYERS, WARM_UP_SIZE, is_blank=True), checkpoint_id=uri, storage_reader=reader)
    state: dict[str, Any] = {**make_shards(layers, site.tensor, is_blank=True)}
    dist.barrier()

    def work() -> Done:
        load(state, checkpoint_id=f"s3://{site.bucket}/{SHARDED}", storage_reader=reader)
        return Done(items=1, bytes=check_shards(state, layers, site.tensor))

    return work


def saving_sharded(site: Site, make_writer: Callable[[str], Any]) -> Work:
    """Return work that saves all tensors by ``dcp.save``.

    Args:
        site: Where.
        make_writer: Gets the URI of a checkpoint; returns a StorageWriter.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_saver import save

    join()
    uri = f"s3://{site.bucket}/{WARM_UP}{_SAVED}"
    writer = make_writer(uri)
    save(make_shards(WARM_UP_LAYERS, WARM_UP_SIZE), checkpoint_id=uri, storage_writer=writer)
    state: dict[str, Any] = {**make_shards(all_layers(site), site.tensor)}
    received = check_shards(state, all_layers(site), site.tensor)
    dist.barrier()

    def work() -> Done:
        save(state, checkpoint_id=f"s3://{site.bucket}/{_SAVED}", storage_writer=writer)
        return Done(items=1, bytes=received)

    return work

"""Programs that broke an invariant when they were found, made small; each must pass."""

from __future__ import annotations

from dataclasses import replace

from s3torch.testing.simulate import (
    Batch,
    Churn,
    CloseClient,
    Collect,
    DatasetSpec,
    Drop,
    Elsewhere,
    EndWriter,
    Epoch,
    Forget,
    Fork,
    Interrupt,
    Iterate,
    ListPages,
    Load,
    LoseInCycle,
    Next,
    Open,
    OpenWriter,
    Prefetch,
    Program,
    Read,
    ReadRange,
    ReadRanges,
    Replace,
    Save,
    Seek,
    Signal,
    Together,
    Workers,
    Write,
    WriteTo,
)

__all__ = ["FOUND"]

KiB = 1024
# An iteration that has begun several objects when a transform raises; what was begun is cancelled then.
STOPPED = Program(
    seed=200409,
    objects=(1, 20_000, 200_000, 4_000, 4_000, 4_000, 4_000, 20_000, 300, 300, 20_000, 70_000),
    datasets=(DatasetSpec("iterable", transform="stop", special=11),),
    steps=(Iterate("i1", 0), Next("i1", 100)),
    options={"max_connections": 4, "max_objects_ahead": 5},
)
SMALL_PARTS = {"part_size": 16 * KiB}

FOUND: dict[str, Program] = {
    "an exception that was kept goes in the middle of the next batch": Program(
        seed=490,
        objects=(300, 70_000, 300, 300, 90, 300),
        datasets=(DatasetSpec("map", "objects", reader="range", special=4),),
        steps=(Epoch(0, ((2, 6, 1, 4, 0, 10, 3, 8), (7, 10, 4, 6, 5, 9, 9, 0)), ahead=1, keep=True),),
        options={"call_timeout": 0.05},
        coincidences=(Forget(step=0, at=9625),),
    ),
    "two threads and one dataset": Program(
        seed=8,
        objects=(300,),
        datasets=(DatasetSpec("map", special=11),),
        steps=(Together(((Batch(0, (11,)),), (Batch(0, (2, 8), (5,)),)), gap=150),),
    ),
    "a transform that reads another batch": Program(
        seed=19,
        objects=(300, 300),
        datasets=(DatasetSpec("map", "objects", "nested batch", special=1),),
        steps=(Batch(0, (0, 1, 0)),),
    ),
    "joined ranges that are the whole object": Program(
        seed=59,
        objects=(90,),
        steps=(ReadRanges("k/000", ((0, 39), (47, 49), (45, 45), (56, 90)), into=True),),
    ),
    "a signal handler lists while a head is read": Program(
        seed=18,
        objects=(0,),
        steps=(Open("r1", "k/002"), Read("r1", 50)),
        coincidences=(Signal(step=1, at=509, steps=(ListPages("k/", 5),)),),
        is_tls=True,
    ),
    "a signal handler writes while a request is signed": Program(
        seed=7,
        objects=(300,),
        steps=(ReadRange("k/000", 281, 282),),
        coincidences=(Signal(step=0, at=285, steps=(Write("w/handler", (40_000,)),)),),
    ),
    "a signal handler reads a batch of the dataset that it interrupts": Program(
        seed=297,
        objects=(0, 0, 300, 200_000, 0, 300),
        datasets=(DatasetSpec("map", "objects", reader="range", special=4),),
        steps=(Epoch(0, ((4, 5, 1, 5, 2, 0, 2, 5, 3, 4, 5, 0, 2, 0, 0, 4),), ahead=2),),
        coincidences=(Signal(step=0, at=12430, steps=(Write("w/handler", (100,)), Batch(0, (3, 2, 1, 0)))),),
    ),
    "the collector finds an open writer while transfers are cancelled": Program(
        seed=3,
        objects=(None, 300_000),
        steps=(
            OpenWriter("w", "w/1"),
            WriteTo("w", 60_000),
            WriteTo("w", 60_000),
            LoseInCycle("w"),
            ReadRange("k/001", 0, 300_000, into=True),
            ReadRange("k/001", 0, 20, into=True),
        ),
        options={**SMALL_PARTS, "max_connections": 2, "call_timeout": 0.02},
        coincidences=(Collect(step=4, at=326),),
    ),
    "an interrupt between a submission and the wait": Program(
        seed=1,
        objects=(300, 300, 300),
        steps=(ReadRange("k/000", 0, 300, into=True), ReadRange("k/001", 0, 300, into=True)),
        coincidences=(Interrupt(step=0, at=151),),
    ),
    "the client is closed between two batches": Program(
        seed=4,
        objects=(300, 300, 300),
        datasets=(DatasetSpec("map", "objects"),),
        steps=(Batch(0, (0, 1), (2,)), CloseClient(0), Batch(0, (2,))),
    ),
    "the client is closed after a prefetch": Program(
        seed=75,
        objects=(300, 300, 300, 300),
        steps=(Open("r2", "k/003"), Prefetch("r2"), CloseClient(), Seek("r2", 10)),
    ),
    "an error that is dropped": Program(
        seed=5,
        objects=(0, 300, None),
        steps=(Open("r", "k/002"), Read("r", 10)),
    ),
    "an iteration that is left": Program(
        seed=76,
        objects=(300, 300, 300),
        datasets=(DatasetSpec("iterable", special=8),),
        steps=(Iterate("i1", 0), Next("i1", 1)),
    ),
    "an interrupt of an upload to a server that is silent": Program(
        seed=13,
        objects=(300,),
        steps=(Write("w/1", (60_000,)),),
        options=SMALL_PARTS,
        coincidences=(Interrupt(step=0, select=300),),
        faults=((3, "silence"),),
    ),
    "threads that come and go": Program(seed=0, objects=(300, 300, 90), steps=(Churn(6, "k/001"),)),
    "a key is added between the listings of two workers, iterable": Program(
        seed=2,
        objects=(300, 300, 300),
        datasets=(DatasetSpec("iterable", is_sharded=True),),
        steps=(Workers(0, 2, "k/-"),),
    ),
    "a key is added between the listings of two workers, map": Program(
        seed=13,
        objects=(300, 300, 300),
        datasets=(DatasetSpec("map"),),
        steps=(Workers(0, 2, "k/-"),),
    ),
    "a transform raises StopIteration, iterable": Program(
        seed=15,
        objects=(1, 1, 1),
        datasets=(DatasetSpec("iterable", "objects", "stop", special=1),),
        steps=(Iterate("i2", 0), Next("i2", 100)),
    ),
    "a transform raises StopIteration, map": Program(
        seed=10,
        objects=(300, 300),
        datasets=(DatasetSpec("map", transform="stop", special=1),),
        steps=(Batch(0, (0, 1)),),
    ),
    "an interrupt in the middle of a cancel that follows an error": replace(
        STOPPED, coincidences=(Interrupt(step=1, of="exchange.py:without_frames", call=1, at=3),)
    ),
    "an interrupt before a cancel that follows an error has begun": replace(
        STOPPED, coincidences=(Interrupt(step=1, of="engine.py:cancel", call=1, at=1),)
    ),
    "an interrupt while a finaliser closes a reader that has begun": Program(
        seed=312329,
        objects=(300,),
        datasets=(DatasetSpec("map", transform="name"),),
        steps=(Epoch(0, ((0,) * 8, (0,) * 8, (0,) * 4, (0,) * 2)),),
        coincidences=(Interrupt(step=0, of="fetch.py:cancel", call=18, at=2),),
    ),
    "an interrupt while a dropped iterator closes its readers": Program(
        seed=315251,
        objects=(4_000, 300, 300, 300, 300, 90),
        datasets=(DatasetSpec("iterable"),),
        steps=(Iterate("i2", 0), Next("i2", 1), Drop("i2")),
        options={"max_connections": 2},
        coincidences=(Interrupt(step=2, of="sequential.py:__init__", call=3, at=4),),
    ),
    "an error that is kept keeps no samples of its batch": Program(
        seed=1,
        objects=(4_000, None),
        datasets=(DatasetSpec("map", "objects"),),
        steps=(Batch(0, (0, 1)),),
    ),
    "an error that is kept keeps no memory of its adaptive reader": Program(
        seed=7825,
        objects=(300,),
        steps=(Open("r3", "k/004", "adaptive", told=False), Read("r3", 5_000)),
    ),
    "an error that is kept keeps no memory of an object that was replaced": Program(
        seed=5572,
        objects=(300, 1, 0),
        steps=(Batch(0, (6, 9, 11, 10, 10, 2, 2, 10, 1, 0, 10, 2, 10, 2, 11, 2), upcoming=(9,), keep=True),),
        datasets=(DatasetSpec("map", transform="nested close"),),
        options={"max_connections": 1},
        coincidences=(Replace(step=0, at=3, of="engine.py:turn", call=88, key="k/002", size=20_000),),
    ),
    "an error that is kept keeps no memory of a reader that verifies": Program(
        seed=9039717,
        objects=(20_000,),
        steps=(Batch(0, (0, 1, 2, 1), upcoming=(0, 2, 2, 2)),),
        datasets=(DatasetSpec("map", "objects", transform="nested list", special=1),),
        options={"part_size": 16 * KiB, "checksums": "strict", "call_timeout": 0.01},
        faults=((4, "lost"),),
    ),
    "an error that is kept keeps no memory of its upload": Program(
        seed=1,
        objects=(300,),
        steps=(OpenWriter("w", "w/1"), WriteTo("w", 60_000), EndWriter("w")),
        options={**SMALL_PARTS, "max_attempts": 1},
        faults=((2, "internal error"),),
    ),
    "an interrupt while torch reads a checkpoint": Program(
        seed=306719,
        objects=(300,),
        steps=(Save("c/1", (9_000,)), Load("c/1")),
        coincidences=(Interrupt(step=1, of="archive.py:fetched", call=13, at=14),),
    ),
    "a server that falls silent while a checkpoint's directory is read": Program(
        seed=840639,
        objects=(300,),
        steps=(Save("c/1", (9_000, 60_000)), Load("c/1")),
        options={"part_size": 64 * KiB},
        faults=((8, "silence"),),
    ),
    "an interrupt while torch writes a checkpoint": Program(
        seed=1000755,
        objects=(None,),
        steps=(Save("c/1", (500,)),),
        coincidences=(Interrupt(step=0, of="outline.py:<lambda>", call=1, at=14),),
    ),
    "an interrupt in torch.load, which keeps for ever what it was given": Program(
        seed=1009381,
        objects=(300,),
        steps=(Save("c/1", (9_000, 500)), Load("c/1")),
        coincidences=(Interrupt(step=1, of="_buffer.py:writable_bytes", call=27, at=5),),
    ),
    "an interrupt before the first line of what torch.load reads by": Program(
        seed=2004468,
        objects=(1,),
        steps=(Save("c/1", (1,)), Load("c/1")),
        coincidences=(Interrupt(step=1, of="loading.py:readinto", call=17, at=1),),
    ),
    "an error of a handler that another handler has come into the middle of": Program(
        seed=6042151,
        objects=(300, None),
        datasets=(DatasetSpec("map", "objects", reader="range"),),
        steps=(Batch(0, (0,)),),
        coincidences=(
            Signal(
                step=0,
                of="loop.py:_complete",
                call=1,
                at=5,
                steps=(ReadRange("k/000", 0, 10), ReadRange("k/001", 0, 10)),
            ),
            Signal(step=0, select=20, steps=(ReadRange("k/000", 0, 10),)),
        ),
    ),
    "a handler waits for a child that lists, in the middle of the listing": Program(
        seed=1,
        objects=(300, 300, 300, 300),
        datasets=(DatasetSpec("map"),),
        steps=(Fork((ReadRange("k/000", 0, 10),)), Batch(0, (0, 1))),
        coincidences=(Signal(step=1, select=3, steps=(Fork((Batch(0, (0, 1)),)),)),),
    ),
    "two handlers beside an epoch that keeps its errors": Program(
        seed=6042151,
        objects=(300, 0, 300, 300, 300, None, 300, None, 300, 70_000, 20_000, 300),
        datasets=(DatasetSpec("map", "objects", reader="range", special=9),),
        steps=(Epoch(0, ((4, 10, 9, 10, 4, 5, 21, 8), (9,)), ahead=1, keep=True),),
        coincidences=(
            Signal(step=0, select=101, steps=(ReadRange("k/003", 0, 10, into=True),) * 2),
            Signal(
                step=0,
                of="http1.py:ends_with_connection",
                call=17,
                at=4,
                steps=(ReadRange("k/005", 0, 10, into=True),) * 2,
            ),
        ),
    ),
    "an interrupt before the first line of what an abort cancels by": Program(
        seed=6073427,
        objects=(300,),
        steps=(OpenWriter("w2", "w/1"), WriteTo("w2", 60_000), EndWriter("w2", "abort")),
        options=SMALL_PARTS,
        coincidences=(Interrupt(step=2, of="upload.py:cancel", call=1, at=1),),
    ),
    "a handler in the middle of a thread's first use of a client": Program(
        seed=8068515,
        objects=(300,),
        steps=(Open("r1", "k/002", "range", told=False), Elsewhere((Seek("r1", 1_000_000),)), Read("r1", -1)),
        coincidences=(Signal(step=2, at=20, of="ranged.py:_read_at", call=1, steps=(ListPages("k/", 5, 100),)),),
    ),
    "an interrupt in the finaliser of a writer": Program(
        seed=8007417,
        objects=(300,),
        steps=(OpenWriter("w2", "w/1"), WriteTo("w2", 30_000), Drop("w2")),
        options=SMALL_PARTS,
        coincidences=(Interrupt(step=2, at=2, of="writer.py:__repr__", call=1),),
    ),
}

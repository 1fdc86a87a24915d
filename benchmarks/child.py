"""The process of one measurement: reads its task from a file of JSON, prints its sample as the last line."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import measure
from benchmarks.processes import INTERRUPTS
from benchmarks.roster import contenders_of
from benchmarks.site import Effort, Site

__all__: list[str] = []

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    job = json.loads(Path(sys.argv[1]).read_text())
    site, effort = Site.of_json(job["site"]), Effort(**job["effort"])
    contender = contenders_of(job["task"])[job["name"]]
    if contender.needs is not None:
        importlib.import_module(contender.needs)  # so that no clock of the work counts it
    work = contender.prepare(site, effort)
    sample = measure(work, warm_up=effort.warm_up, rounds=effort.rounds, access_log=site.access_log)
    print("\n" + json.dumps(asdict(sample)), flush=True)
    os._exit(0)  # the end of the interpreter is not measured, and a client with threads of its own may abort there

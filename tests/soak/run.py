"""Trains against a real server that is killed, whose connections are reset and whose keys are rotated, at random.

The server is SeaweedFS. A relay stands before it, on a port that stays the same: it resets connections in the middle
of transfers, and refuses connections from when the server is killed until it answers again. Keys are made and withdrawn
by the server's IAM API; the trainer finds them in a credentials file, as botocore does. All memory and descriptors of
the trainer and its workers are measured once a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3torch import S3Client
from s3torch.testing import LocalS3
from tests.soak.chaos import BUCKET, Chaos, Keys, boto, port_of
from tests.soak.record import Plan, Record
from tests.soak.relay import Relay

__all__ = ["soak"]

ROOT = Path(__file__).parent.parent.parent
PAGE = os.sysconf("SC_PAGE_SIZE")
# Nobody waits longer than this for a sample; a hang, then.
PATIENCE = 240.0


def soak(plan: Plan) -> Record:
    """Run it.

    Args:
        plan: What is done.
    """
    record = Record(plan)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3torch-soak-")))
        server = stack.enter_context(LocalS3(directory=home / "data"))
        relay = stack.enter_context(Relay(plan.seed))
        (home / "digests.json").write_text(json.dumps(store(server, plan)))
        keys = Keys(server, home / "credentials")
        relay.open(port_of(server))
        errors = stack.enter_context((home / "errors").open("w+"))
        with trainer(plan, home, relay.port, errors) as process:
            watch(record, process, Chaos(record, server, relay, keys))
        errors.seek(0)
        said = errors.read()
        if said.strip():
            record.problems.append(f"the trainer said: {said[-6000:]}")
        record.moments["reset in a request"] = [
            when - record.began for when, what in relay.resets if what == "requests"
        ]
        record.moments["reset in an answer"] = [when - record.began for when, what in relay.resets if what == "answers"]
        find_open_uploads(record, server)
    return record


def find_open_uploads(record: Record, server: LocalS3) -> None:
    """Note the multipart uploads that nobody completed or gave up.

    Those without a part are counted apart: where the answer to CreateMultipartUpload is lost on its way and the request
    is sent again, the server has begun two, and nobody knows the name of the first. It holds no bytes.
    """
    s3 = boto("s3", server)
    for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
        key, upload_id = upload["Key"], upload["UploadId"]
        parts = s3.list_parts(Bucket=BUCKET, Key=key, UploadId=upload_id).get("Parts", ())
        if parts:
            begun = upload["Initiated"].timestamp() - time.time() + record.now()
            record.uploads.append(f"{key} of {begun:.0f} s with {len(parts)} parts")
        else:
            record.empty_uploads += 1


def store(server: LocalS3, plan: Plan) -> dict[str, str]:
    """Store the samples, and return their digests; sizes are spread evenly over the orders of magnitude."""
    digests = {}
    with server.activated():
        server.create_bucket(BUCKET)
        client = S3Client()
        for number in range(plan.objects):
            chance = random.Random(f"{plan.seed} {number}")
            size = round(math.exp(chance.uniform(math.log(plan.smallest), math.log(plan.largest))))
            key, content = f"samples/{number:06}", chance.randbytes(size)
            digests[key] = hashlib.sha256(content).hexdigest()
            with client.put_object(BUCKET, key) as writer:
                writer.write(content)
        client.close()
    return digests


@contextlib.contextmanager
def trainer(plan: Plan, home: Path, port: int, errors: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the trainer, which finds only what it is given."""
    told = {
        "bucket": BUCKET,
        "endpoint": f"http://127.0.0.1:{port}",
        "seed": plan.seed,
        "digests": str(home / "digests.json"),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "checkpoint_every": plan.checkpoint_every,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {
        **kept,
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "tests.soak.trainer", json.dumps(told)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()


def watch(record: Record, process: subprocess.Popen[str], chaos: Chaos) -> None:
    """Read what the trainer tells and measure it until it ends.

    Chaos begins once both loaders have been through an epoch; when it is over, the trainer is told to end.
    """
    record.began = time.monotonic()
    listener = threading.Thread(target=listen, args=(record, process))
    listener.start()
    has_begun = False
    assert process.stdin is not None
    try:
        while process.poll() is None:
            time.sleep(1.0)
            if record.rounds and not has_begun:
                has_begun = True
                chaos.start()
            if record.rounds and not record.is_over:
                measure(record, process.pid)
            last = record.samples[-1][0] if record.samples else 0.0
            if record.now() - last > PATIENCE:
                record.problems.append(f"nothing came for {PATIENCE:.0f} s")
                for pid in family(process.pid):
                    os.kill(pid, signal.SIGUSR1)  # shows where they are
                time.sleep(1.0)
                break
            if has_begun and not chaos.is_alive():
                process.stdin.close()
        record.exit_status = process.poll()
    finally:
        chaos.end()
        process.kill()
        listener.join()
        record.ended = record.now()


def listen(record: Record, process: subprocess.Popen[str]) -> None:
    """Count what the trainer tells."""
    for line in process.stdout or ():
        told = json.loads(line)
        match told["event"]:
            case "batch":
                record.counts["samples right"] += told["right"]
                record.counts["samples wrong"] += told["wrong"]
                record.samples.append((record.now(), told["right"]))
            case "epoch":
                record.counts["epochs complete" if told["complete"] else "epochs incomplete"] += 1
            case "checkpoint":
                record.counts["checkpoints right" if told["same"] else "checkpoints wrong"] += 1
                record.samples.append((record.now(), 0))
            case "failed save":
                record.counts[f"saves that were repeated: {told['error']}"] += 1
                record.mark("save repeated")
                print(f"{record.now():.0f} s: {told['text']}", file=sys.stderr)
            case "round":
                record.rounds += 1
            case "end":
                record.is_over = True


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *children]


def measure(record: Record, pid: int) -> None:
    """Note resident memory and open descriptors of the trainer and its workers."""
    memory = descriptors = 0
    try:
        for each in family(pid):
            memory += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * PAGE
            descriptors += sum(1 for _ in Path(f"/proc/{each}/fd").iterdir())
    except OSError:
        return  # it has just ended
    record.memory.append((round(record.now(), 2), memory))
    record.descriptors.append((round(record.now(), 2), descriptors))

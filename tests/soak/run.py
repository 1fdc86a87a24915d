"""Trains against a real server that is killed, whose connections are reset and whose keys are rotated, at random.

The server is SeaweedFS. A relay stands before it, on a port that stays the same: it resets connections in the middle
of transfers, and refuses connections from when the server is killed until it answers again. Keys are made and withdrawn
by the server's IAM API; the trainer finds them in a credentials file, as botocore does. All memory and descriptors of
the trainer and its workers are measured once a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from s3torch import S3Client
from s3torch.testing import LocalS3
from tests.soak.relay import Relay

__all__ = ["Plan", "Record", "as_json", "quarters", "soak", "verdict"]

BUCKET = "soak"
USER = "trainer"
ROOT = Path(__file__).parent.parent.parent
PAGE = os.sysconf("SC_PAGE_SIZE")
# Nobody waits longer than this for a sample; a hang, then.
PATIENCE = 240.0
# What the end may have more than the second quarter, beside 5 %: noise of what happens to be in flight.
MORE_BYTES = 32 * 1024 * 1024
MORE_DESCRIPTORS = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done, from when both loaders have been through an epoch; times are seconds, those of chance are means."""

    seconds: float
    seed: int = 1
    objects: int = 2000
    smallest: int = 1000
    largest: int = 8_000_000
    checkpoint_bytes: int = 40_000_000
    checkpoint_every: float = 20.0
    kill_every: float = 60.0
    rotate_every: float = 40.0
    reset_every: float = 1.0
    longest_outage: float = 8.0


@dataclass
class Record:
    """What happened; moments are seconds since the trainer began."""

    plan: Plan
    began: float = 0.0
    ended: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    moments: dict[str, list[float]] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    descriptors: list[tuple[float, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    empty_uploads: int = 0
    exit_status: int | None = None
    rounds: int = 0
    is_over: bool = False

    def now(self) -> float:
        """Return the moment."""
        return time.monotonic() - self.began

    def mark(self, what: str) -> None:
        """Remember when something happened."""
        self.moments.setdefault(what, []).append(round(self.now(), 2))

    def longest_wait(self) -> float:
        """Return the longest time between two batches."""
        times = [when for when, _ in self.samples]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def quarters(series: list[tuple[float, int]]) -> tuple[float, float]:
    """Return the medians of the second and the last quarter."""
    values = [value for _, value in series]
    part = len(values) // 4
    if not part:
        return 0.0, 0.0
    return (sorted(values[part : 2 * part])[part // 2], sorted(values[-part:])[part // 2])


def is_flat(series: list[tuple[float, int]], more: int) -> bool:
    """Whether the median of the last quarter is that of the second, up to 5 % and ``more``."""
    second, last = quarters(series)
    return last <= second * 1.05 + more


def verdict(record: Record, *, with_trends: bool = True) -> list[str]:
    """Return what went wrong; nothing if all is well.

    Args:
        record: Of a run.
        with_trends: Whether memory and descriptors are judged, which takes a run of some minutes.
    """
    counts = record.counts
    wrong = list(record.problems)
    if record.exit_status != 0:
        wrong.append(f"the trainer ended with status {record.exit_status}")
    never, some = ("samples wrong", "epochs incomplete", "checkpoints wrong"), ("samples right", "epochs complete")
    wrong += [f"{name}: {counts[name]}" for name in never if counts[name]]
    wrong += [f"{name}: none" for name in (*some, "checkpoints right") if not counts[name]]
    if record.uploads:
        wrong.append(f"multipart uploads left open: {', '.join(record.uploads)}")
    if with_trends and not is_flat(record.memory, MORE_BYTES):
        wrong.append(f"memory grew from {quarters(record.memory)[0]:.0f} to {quarters(record.memory)[1]:.0f} bytes")
    if with_trends and not is_flat(record.descriptors, MORE_DESCRIPTORS):
        wrong.append(f"descriptors grew from {quarters(record.descriptors)[0]} to {quarters(record.descriptors)[1]}")
    return wrong


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


def boto(service: str, server: LocalS3) -> Any:
    """Return a client that is not ours, for the server itself and with its own key."""
    return botocore.session.Session().create_client(
        service,
        region_name=server.region,
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


def port_of(server: LocalS3) -> int:
    """Return where the server listens."""
    return int(server.endpoint.rpartition(":")[2])


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


class Keys:
    """The trainer's key, in a credentials file, and how it becomes another one.

    Args:
        server: That knows the keys.
        path: The credentials file.
    """

    def __init__(self, server: LocalS3, path: Path) -> None:
        self.path = path
        self._server = server
        self._current = ""
        iam = boto("iam", server)
        iam.create_user(UserName=USER)
        policy = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
        document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        iam.put_user_policy(UserName=USER, PolicyName="all", PolicyDocument=document)
        self.rotate()

    def rotate(self) -> None:
        """Make a key, write it to the file as soon as it works, and withdraw the one before."""
        iam, before = boto("iam", self._server), self._current
        made = iam.create_access_key(UserName=USER)["AccessKey"]
        self._current, secret = made["AccessKeyId"], made["SecretAccessKey"]
        text = f"[default]\naws_access_key_id = {self._current}\naws_secret_access_key = {secret}\n"
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        self.wait_until_valid(fresh)
        fresh.replace(self.path)
        if before:
            iam.delete_access_key(UserName=USER, AccessKeyId=before)

    def wait_until_valid(self, path: Path | None = None) -> None:
        """Wait until the server takes the key, which is some moments after it was made or the server started."""
        lines = (path or self.path).read_text().splitlines()[1:]
        key, secret = (line.partition(" = ")[2] for line in lines)
        client = botocore.session.Session().create_client(
            "s3",
            region_name=self._server.region,
            endpoint_url=self._server.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                # A sample, as the part of the server that holds contents may be ready last.
                client.get_object(Bucket=BUCKET, Key="samples/000000")["Body"].read()
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


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


class Chaos(threading.Thread):
    """Kills the server, rotates keys and resets connections, each at random moments.

    Args:
        record: Of what is done.
        server: To kill.
        relay: To reset.
        keys: To rotate.
    """

    def __init__(self, record: Record, server: LocalS3, relay: Relay, keys: Keys) -> None:
        super().__init__(name="chaos")
        self._record, self._server, self._relay, self._keys = record, server, relay, keys
        self._random = random.Random(record.plan.seed)
        self._end = threading.Event()

    def run(self) -> None:
        """Do so for the time that is planned, or until told to end; afterwards the server runs."""
        plan, end = self._record.plan, self._record.now() + self._record.plan.seconds
        means = {self._kill: plan.kill_every, self._rotate: plan.rotate_every, self._reset: plan.reset_every}
        due = {action: self._record.now() + self._random.uniform(0, mean) for action, mean in means.items()}
        try:
            while True:
                action = min(due, key=lambda each: due[each])
                if self._end.wait(max(0.0, min(due[action], end) - self._record.now())) or self._record.now() >= end:
                    return
                action()
                due[action] = self._record.now() + self._random.expovariate(1 / means[action])
        except Exception as error:  # noqa: BLE001 - ends the run, which names it
            self._record.problems.append(f"chaos ended with {error!r}")

    def end(self) -> None:
        """Let all be well from now on."""
        self._end.set()
        if self.ident is not None:
            self.join()

    def _kill(self) -> None:
        self._record.mark("server killed")
        os.kill(self._server.pid or 0, signal.SIGKILL)
        self._relay.shut()
        self._server.stop()
        time.sleep(self._random.uniform(0, self._record.plan.longest_outage))
        self._server.start()
        self._keys.wait_until_valid()
        self._relay.open(port_of(self._server))
        self._record.mark("server back")

    def _rotate(self) -> None:
        self._keys.rotate()
        self._record.mark("key rotated")

    def _reset(self) -> None:
        self._relay.reset_one()


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


def as_json(record: Record) -> dict[str, Any]:
    """Return all of it as plain values."""
    return {**vars(record), "plan": asdict(record.plan)}

"""What is done to the server: it is killed and started again, its connections are reset, its keys are rotated."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from s3torch.testing import LocalS3
from tests.soak.record import Record
from tests.soak.relay import Relay

__all__ = ["BUCKET", "Chaos", "Keys", "boto", "port_of"]

BUCKET = "soak"
USER = "trainer"


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
                mean = means[action]  # half of it at least: a request whose key was withdrawn is sent again once
                due[action] = self._record.now() + mean / 2 + self._random.expovariate(2 / mean)
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

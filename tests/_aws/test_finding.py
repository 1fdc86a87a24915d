"""Tests of where credentials come from, and of what becomes of every failure on that way."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._aws import finding
from s3torch._aws.finding import Inherited, Overload, environment, error_of
from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials
from s3torch.errors import ConfigError, CredentialsError, S3Error, ServerError, ThrottledError
from tests.support.environment import forget_pauses, know_only
from tests.support.server import Request, ScriptedServer, Wire, first, serve_object

CONTENT = b"content"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is configured; the folder of the files that may be."""
    know_only(monkeypatch, tmp_path)
    forget_pauses(monkeypatch)
    return tmp_path


def process(home: Path, output: str, status: int = 0) -> str:
    """Return a profile whose credentials are printed by a process, which notes that it ran."""
    script = home / "script.py"
    script.write_text(
        f"import os\nopen({str(home / 'runs')!r}, 'a').write('.')\nprint({output!r})\nraise SystemExit({status})"
    )
    return f"[default]\ncredential_process = {sys.executable} {script}\n"


def printed(seconds: float | None = None, **changes: object) -> str:
    """Return what a process prints that gives out credentials which end after some seconds."""
    keys: dict[str, object] = {"Version": 1, "AccessKeyId": "ACCESS", "SecretAccessKey": "HIDDEN", **changes}
    if seconds is not None:
        keys["Expiration"] = (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()
    return json.dumps({name: value for name, value in keys.items() if value is not None})


ROLE = "[default]\nrole_arn = arn:aws:iam::123456789012:role/a\n"
BROKEN: dict[str, str | Callable[[Path], str]] = {
    "no process": "[default]\ncredential_process = /nonexistent/process\n",
    "process that fails": lambda home: process(home, "", 1),
    "process that prints text": lambda home: process(home, "HIDDEN is no JSON"),
    "process that prints a list": lambda home: process(home, "[1]"),
    "process that prints null": lambda home: process(home, "null"),
    "process of another version": lambda home: process(home, printed(Version=2)),
    "process without a secret": lambda home: process(home, printed(SecretAccessKey=None)),
    "process with a bad date": lambda home: process(home, printed(Expiration="soon")),
    "process that cannot be split": "[default]\ncredential_process = 'open\n",
    "process that has expired": lambda home: process(home, printed(-100)),
    "file that is cut off": "[default\naws_access_key_id = ACCESS\n",
    "file without sections": "aws_secret_access_key HIDDEN\n",
    "file with a doubled option": "[default]\naws_access_key_id = a\naws_access_key_id = b\n",
    "file with a doubled section": "[default]\nregion = a\n[default]\nregion = b\n",
    "nested section without values": "[default]\ns3 =\n  addressing_style\n",
    "section that is no section": "[default]\ns3 = path\n",
    "style that is none": "[default]\ns3 =\n  addressing_style = diagonal\n",
    "half of a key": "[default]\naws_access_key_id = ACCESS\n",
    "role of nobody": ROLE,
    "role of a missing profile": f"{ROLE}source_profile = other\n",
    "role of itself, in a circle": f"{ROLE}source_profile = b\n[profile b]\nrole_arn = x\nsource_profile = c\n"
    "[profile c]\nrole_arn = y\nsource_profile = b\n",
    "role of an unknown source": f"{ROLE}credential_source = Nowhere\n",
    "role of a missing token": f"{ROLE}web_identity_token_file = /nonexistent/token\n",
    "single sign-on that is half configured": "[default]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\n",
    "single sign-on that never was": "[default]\nsso_start_url = https://x.invalid\nsso_region = us-east-1\n"
    "sso_account_id = 1\nsso_role_name = r\n",
    "retries that are no number": "[default]\nmax_attempts = many\n",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("call", ["read", "copy", "save"])
def test_broken_profiles(home: Path, broken: str | Callable[[Path], str], call: str):
    """However a profile is broken, it is an error of ours that no program takes for a file that is not there."""
    (home / "config").write_text(broken if isinstance(broken, str) else broken(home))
    with ScriptedServer(serve_object(CONTENT)) as server, pytest.raises(S3Error) as caught:
        act(call, server.endpoint)
    assert isinstance(caught.value, (CredentialsError, ConfigError))
    assert not isinstance(caught.value, OSError)
    assert "HIDDEN" not in str(caught.value)


def act(call: str, endpoint: str, **options: object) -> object:
    """Make a call."""
    config = S3ClientConfig(**{"max_attempts": 1, **options})
    client = S3Client(endpoint=endpoint, s3client_config=config)
    try:
        if call == "read":
            return client.read_range("bucket", "key", 0)
        if call == "copy":
            return client.copy_object("bucket", "key", "bucket", "copy")
        with client.put_object("bucket", "key") as writer:
            writer.write(b"content")
        return None
    finally:
        client.close()


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ROLE_ARN": "arn:aws:iam::1:role/a", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://evil.invalid/"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "nonsense"},
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/nonexistent/token",
        },
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "HIDDEN\nx"},
        {"AWS_ACCESS_KEY_ID": "ACCESS"},
        {
            "AWS_ACCESS_KEY_ID": "ACCESS",
            "AWS_SECRET_ACCESS_KEY": "HIDDEN",
            "AWS_CREDENTIAL_EXPIRATION": "soon",
        },
        {"AWS_PROFILE": "missing"},
    ],
)
@pytest.mark.parametrize("call", ["read", "copy"])
def test_broken_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], call: str):
    """Nor does what the variables name wrongly."""
    from botocore.utils import ContainerMetadataFetcher

    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with ScriptedServer(serve_object(CONTENT)) as server, pytest.raises(S3Error) as caught:
        act(call, server.endpoint)
    assert isinstance(caught.value, (CredentialsError, ConfigError))
    assert not isinstance(caught.value, OSError)
    assert "HIDDEN" not in str(caught.value)


def test_an_error_of_any_kind():
    """What botocore raises is told in its words; what comes from elsewhere by the name of its class, too."""
    missing = FileNotFoundError(2, "No such file or directory", "/token")
    assert str(error_of(missing, ())).startswith(
        "The credentials could not be loaded or refreshed: FileNotFoundError: [Errno 2] No such file or directory: "
        "'/token'. Check AWS_PROFILE"
    )
    assert "a ... b" in str(error_of(ValueError("a SECRET\n b"), ("SECRET", None, "")))
    assert len(str(error_of(ValueError("x" * 10_000), ()))) < 1000
    assert "KeyError" in str(error_of(KeyError(), ()))
    known = CredentialsError("known")
    assert error_of(known, ()) is known


# Agents


def serving_keys(request: Request, wire: Wire) -> None:
    """Answer as the agent of a container does."""
    end = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = {"AccessKeyId": "ACCESS", "SecretAccessKey": "HIDDEN", "Token": "TOKEN", "Expiration": end}
    wire.respond(200, {}, json.dumps(keys).encode())


@pytest.mark.parametrize(("status", "kind"), [(429, ThrottledError), (503, ThrottledError), (500, ServerError)])
def test_overloaded_agent(monkeypatch: pytest.MonkeyPatch, status: int, kind: type[S3Error]):
    """An agent that asks for fewer requests is asked again for as long as a service that does."""
    from botocore.utils import ContainerMetadataFetcher

    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)
    monkeypatch.setattr(finding, "_OVERLOAD_PAUSE", 0.0)
    asks = 3  # of botocore for each of our attempts

    def refuse(request: Request, wire: Wire) -> None:
        wire.respond(status, {}, b"slower, please")

    with (
        ScriptedServer(first(7 * asks, refuse, serving_keys)) as agent,
        ScriptedServer(serve_object(CONTENT)) as server,
    ):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.endpoint}/keys")
        assert act("read", server.endpoint, max_attempts=8) == CONTENT
    with ScriptedServer(refuse) as agent, ScriptedServer(serve_object(CONTENT)) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.endpoint}/keys")
        with pytest.raises(kind, match="credentials") as caught:
            act("read", server.endpoint, max_attempts=4)
        assert caught.value.attempts == 4
        assert len(agent.requests) == 4 * asks
        assert server.requests == []


def test_overload_is_remembered():
    """While an agent is overloaded, requests that wait for credentials do not each ask it."""
    now = 10.0
    overload = Overload(lambda: now)
    overload.check()
    overload.note(CredentialsError("none"))
    overload.check()
    overload.note(ThrottledError("slower"))
    with pytest.raises(ThrottledError, match="slower"):
        overload.check()
    now += 2.0
    overload.check()


# Forks


def in_children(count: int, act: Callable[[], object]) -> list[object]:
    """Return what forked children return."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    lock = context.Lock()

    def run() -> None:
        answer = act()
        with lock:
            there.send(answer)

    children = [context.Process(target=run) for _ in range(count)]
    for child in children:
        child.start()
    answers = [here.recv() if here.poll(60) else None for _ in children]
    for child in children:
        child.join()
    return answers


@pytest.mark.parametrize("seconds", [None, 3600, 30])
def test_one_search_serves_all_workers(home: Path, seconds: float | None):
    """Children of a fork sign with what their parent has found, as long as that lasts."""
    (home / "config").write_text(process(home, printed(seconds)))
    with ScriptedServer(serve_object(CONTENT)) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        client.head_object("bucket", "key")
        found = len((home / "runs").read_text())

        def read() -> object:
            content = client.read_range("bucket", "key", 0)
            client.close()
            return content

        assert in_children(4, read) == [CONTENT] * 4
        assert in_children(1, lambda: in_children(2, read)) == [[CONTENT] * 2]
        assert len((home / "runs").read_text()) == found
        client.close()


def test_what_ends_soon_is_looked_for_anew(home: Path):
    """Credentials that end within seconds are not inherited."""
    (home / "config").write_text(process(home, printed(8)))
    with ScriptedServer(serve_object(CONTENT)) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        client.head_object("bucket", "key")
        found = len((home / "runs").read_text())
        assert in_children(2, lambda: client._access._sessions().credentials() is not None) == [True, True]
        assert len((home / "runs").read_text()) > found
        client.close()


def test_child_with_other_variables(monkeypatch: pytest.MonkeyPatch):
    """A child whose environment names other credentials uses these."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "PARENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "HIDDEN")
    client = S3Client("us-east-1")
    assert client._access._sessions().credentials() == Credentials("PARENT", "HIDDEN")

    def change() -> object:
        os.environ["AWS_ACCESS_KEY_ID"] = "CHILD"
        return client._access._sessions().credentials()

    assert in_children(1, change) == [Credentials("CHILD", "HIDDEN")]


def test_refused_credentials_are_not_inherited_twice(monkeypatch: pytest.MonkeyPatch):
    """A child whose inherited credentials are refused looks for others."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "PARENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "HIDDEN")
    session = AwsSession(S3ClientConfig(), "us-east-1", None)
    session.credentials()
    child = AwsSession(S3ClientConfig(), "us-east-1", None, session.heritage())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "PARENT")
    assert child.credentials() == Credentials("PARENT", "HIDDEN")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NEW")
    assert child.credentials() == Credentials("PARENT", "HIDDEN")
    child.forget_credentials()
    assert child.credentials() == Credentials("NEW", "HIDDEN")
    assert AwsSession(S3ClientConfig(), "us-east-1", None).heritage() is None


class Source:
    """Credentials that last for some seconds; as botocore's, they tell whether they end within a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def refresh_needed(self, margin: float) -> bool:
        return self.seconds < margin


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [(3600, 600, 900), (899, 60, 900), (130, 60, 120), (59, 10, 20), (15, 0, 20), (9, 9, 9)],
)
def test_inherited_credentials_are_given_up_in_time(seconds: float, least: float, most: float):
    """They are used up to a moment before their end, a random one in which not all children ask at once."""
    source = Source(seconds)
    keys = Credentials("key", "secret")
    moments = set()
    for _ in range(50):
        source.seconds = seconds
        inherited = Inherited(keys, source, environment())
        while inherited.current() is not None:
            source.seconds -= 1
        moments.add(source.seconds)
    assert all(least - 1 <= moment <= max(most, seconds) for moment in moments)
    assert len(moments) > 3 or seconds < 60


def test_threads_of_a_child(home: Path):
    """Threads of a child that begin at the same time inherit alike."""
    (home / "config").write_text(process(home, printed(3600)))
    client = S3Client("us-east-1")
    parents = client._access._sessions().credentials()

    def ask() -> object:
        found: list[Credentials | None] = []
        threads = [
            threading.Thread(target=lambda: found.append(client._access._sessions().credentials())) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found == [parents] * 8

    assert in_children(1, ask) == [True]
    assert (home / "runs").read_text() == "."

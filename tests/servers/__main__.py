"""``python -m tests.servers NAME...``: starts servers, checks each, and compares with what is recorded.

Exits with 1 if a check of a server came out otherwise than ``docs/servers.json`` has it. ``--record`` writes what was
seen there, and the tables of ``docs/servers.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from s3torch.config import S3ClientConfig
from s3torch.testing import conformance

from . import record
from .processes import Processes, ServerError
from .recipes import RECIPES, Endpoint, Recipe

BUCKET, VERSIONED = "conformance", "conformance-versions"


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Finds no other credentials, and no proxy, for the time."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _make_buckets(endpoint: Endpoint, recipe: Recipe) -> None:
    import botocore.session

    session = botocore.session.Session()
    session.set_credentials(endpoint.access_key, endpoint.secret_key)
    config = botocore.config.Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    client = session.create_client("s3", region_name="us-east-1", endpoint_url=endpoint.url, config=config)
    client.create_bucket(Bucket=BUCKET)
    if recipe.has_versions:
        client.create_bucket(Bucket=VERSIONED)
        client.put_bucket_versioning(Bucket=VERSIONED, VersioningConfiguration={"Status": "Enabled"})
    client.close()


def check(name: str, config: S3ClientConfig | None = None) -> tuple[conformance.Report, str]:
    """Starts a server; returns how the checks came out, that of versions in a bucket that keeps them, and its version.

    Args:
        name: Of the recipe.
        config: Of the clients; None is what the recipe says that users must set.

    Raises:
        ServerError: It cannot be had here, or does not start.
    """
    recipe = RECIPES[name]
    programs = recipe.programs(name)
    with Processes() as processes:
        endpoint = recipe.start(processes, programs)
        changes = {
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        with _environment(changes):
            _make_buckets(endpoint, recipe)
            arguments = {
                "endpoint": endpoint.url,
                "region": "us-east-1",
                "s3client_config": config or recipe.config,
                "progress": _show,
            }
            report = conformance.run(BUCKET, **arguments)
            if not recipe.has_versions:
                return report, recipe.version(endpoint)
            versions = conformance.run(VERSIONED, names=["version"], **arguments)
            return record.merged(report, versions), recipe.version(endpoint)


def _show(number: int, count: int, result: conformance.Result) -> None:
    _say(f"[{number:2}/{count}] {result.name:32} {result.outcome.value}  {result.seen[:150]}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Checks the servers that are named; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("server", nargs="+", choices=[*RECIPES, "all"])
    parser.add_argument("--record", action="store_true", help="write docs/servers.json, and the tables of servers.md")
    parser.add_argument("--checksums", choices=("on", "off", "strict"), help="for a try: otherwise than recorded")
    options = parser.parse_args()
    names = list(RECIPES) if "all" in options.server else options.server
    config = S3ClientConfig(checksums=options.checksums) if options.checksums else None
    differences: list[str] = []
    for name in names:
        _say(f"== {RECIPES[name].title}")
        try:
            report, version = check(name, config)
        except ServerError as error:
            _say(f"{name}: {error}")
            return 1
        _say(f"\n{report}")
        if options.record:
            record.save(name, version, report)
        else:
            differences += [f"{name}: {line}" for line in record.differences(name, report)]
    for line in differences:
        _say(f"otherwise than docs/servers.json has it: {line}")
    if not differences:
        _say(f"{', '.join(names)}: {'recorded' if options.record else 'as docs/servers.json has it'}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

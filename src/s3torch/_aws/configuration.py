"""What botocore has read for this process: its model of S3, and what files and environment amount to.

To parse the model takes a tenth of a second, and to make a session of botocore's a few milliseconds; the clients of a
process ask for the same. So both are kept, each by everything that it depends on:

- a loader, which holds the parsed models, by the folders that it looks in. What it has parsed never changes, so forked
  children go on with it;
- a ``Configuration`` by the profile, the variables that botocore reads, and the contents of its two files. It belongs
  to one process, as a thread may be in the middle of it at a fork. Credentials are never part of it.

All of it is used under ``NO_FORK``, which keeps other threads and forks out.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3torch._forks import NO_FORK
from s3torch.errors import ConfigError

if TYPE_CHECKING:
    from botocore.loaders import Loader
    from botocore.session import Session

__all__ = ["Address", "BotocoreClient", "Configuration", "address", "bundled_authorities", "configuration_of"]

BotocoreClient = Any  # made at run time, from a description of the service

# Of botocore: all that it reads begins with AWS_, but for the old name of a file and where the home folder is.
_PREFIX = "AWS_"
_VARIABLES = ("BOTO_CONFIG", "HOME", "USERPROFILE")
# A Configuration does not hold them, so those who rotate them need no other one.
_SECRETS = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SECURITY_TOKEN",
        "AWS_SESSION_TOKEN",
    }
)

# Environments that take turns in one process, and endpoints that one of them is used with. A program has one or two,
# its tests have many in turn; what is dropped is made again. Not tuned.
_MOST_CONFIGURATIONS = 8
_MOST_PLACEHOLDERS = 16

_Key = tuple[object, ...]

_loaders: dict[str | None, Loader] = {}
_configurations: OrderedDict[_Key, Configuration] = OrderedDict()


def configuration_of(profile: str | None) -> Configuration:
    """Return what botocore's files and the environment amount to now. Hold ``NO_FORK`` while you use it.

    Args:
        profile: Its name; None is that of AWS_PROFILE, or the default one.

    Raises:
        ConfigError: There is no such profile.
    """
    with NO_FORK:
        key = _key_of(profile)
        found = _configurations.pop(key, None) or Configuration(profile)
        _configurations[key] = found
        if len(_configurations) > _MOST_CONFIGURATIONS:
            _configurations.popitem(last=False)
        return found


def bundled_authorities() -> str:
    """Return the file of botocore's list of authorities, for systems that come without one."""
    import botocore

    return str(Path(botocore.__file__).with_name("cacert.pem"))


class Configuration:
    """What one profile amounts to: shared by the clients of a process for which files and environment are the same.

    Args:
        profile: Its name; None is that of AWS_PROFILE, or the default one.

    Raises:
        ConfigError: There is no such profile.
    """

    def __init__(self, profile: str | None) -> None:
        self._profile = profile
        self._session = self._new_session()
        self._placeholders: OrderedDict[_Key, BotocoreClient] = OrderedDict()

    def variable(self, name: str) -> Any:  # noqa: ANN401  # of a type that the variable has
        """Return a variable of botocore's, such as ``region``; None if it is not set."""
        return self._session.get_config_variable(name)

    def find_credentials(self, region: str, options: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  # of a class that botocore chooses
        """Look for credentials anew, and return an object that refreshes itself; None if there are none.

        Args:
            region: Where roles are assumed, unless the profile says otherwise.
            options: Of botocore's Config, such as ``proxies``, for the services that are asked for them.
        """
        from botocore.config import Config
        from botocore.credentials import create_credential_resolver

        session = self._session
        if options:
            session = self._new_session()  # the other one is shared
            session.set_default_client_config(Config(**options))
        return create_credential_resolver(session, region_name=region).load_credentials()

    def placeholder(
        self, region: str, endpoint: str | None, style: str | None, signature: str | None = "s3v4"
    ) -> BotocoreClient:
        """Return a client that knows addresses, and sends nothing; see ``address``.

        Args:
            region: Of the bucket.
            endpoint: URL; None finds it.
            style: How a bucket is addressed: ``auto``, ``path`` or ``virtual``; None is as the profile says.
            signature: How requests are signed, in botocore's words; None: as the bucket wants it.
        """
        from botocore.config import Config

        key = (region, endpoint, style, signature)
        client = self._placeholders.pop(key, None)
        if client is None:
            options: Any = {} if style is None else {"addressing_style": style}
            config = Config(signature_version=signature, s3=options)
            create: Any = self._session.create_client  # its stubs have no clients by name
            keys = {"aws_access_key_id": "placeholder", "aws_secret_access_key": "placeholder"}
            client = create("s3", region_name=region, endpoint_url=endpoint, config=config, **keys)
            client.meta.events.register("before-call.s3.HeadObject", _answer_with_address)
        self._placeholders[key] = client
        while len(self._placeholders) > _MOST_PLACEHOLDERS:
            self._placeholders.popitem(last=False)
        return client

    def _new_session(self) -> Session:
        from botocore.exceptions import ProfileNotFound
        from botocore.session import Session

        session = Session(profile=self._profile)
        try:
            session.get_scoped_config()
        except ProfileNotFound as error:
            raise ConfigError(
                f"There is no profile {self._profile or session.profile!r} in the AWS configuration "
                "files. Check S3ClientConfig(profile=...), AWS_PROFILE and AWS_CONFIG_FILE."
            ) from error
        session.register_component("data_loader", _loader_of(session.get_config_variable("data_path")))
        return session


@dataclass(frozen=True, slots=True)
class Address:
    """Where botocore would send a request, and how it would sign it.

    Attributes:
        url: Of the object ``k``.
        scheme: In botocore's words, such as ``v4a``; empty if nothing was found that fits the signature asked for.
        service: That is signed for.
        region: That is signed for.
    """

    url: str
    scheme: str
    service: str
    region: str


def address(placeholder: BotocoreClient, bucket: str) -> Address:
    """Return where a placeholder would send a request about a bucket's object. Nothing is sent, nothing signed."""
    answer: dict[str, Address] = placeholder.head_object(Bucket=bucket, Key="k")
    return answer["Address"]


def _answer_with_address(params: dict[str, Any], context: dict[str, Any], **_: object) -> tuple[object, object]:
    """Answer a call of botocore's before it is sent, as its Stubber does (the event ``before-call``)."""
    signing = context.get("signing") or {}
    scheme = (context.get("auth_type") or "").removeprefix("s3") if signing else ""
    where = Address(params["url"], scheme, signing.get("signing_name", "s3"), signing.get("region", ""))
    return _NothingSent(), {"Address": where}


class _NothingSent:
    """What botocore looks at of an answer."""

    status_code = 200


def _loader_of(data_path: str | None) -> Loader:
    """Return what loads models: one a process, unless the user has folders of models."""
    loader = _loaders.get(data_path)
    if loader is None:
        loader = _loaders[data_path] = _new_loader(data_path)
    return loader


def _new_loader(data_path: str | None) -> Loader:
    from botocore.loaders import Loader, create_loader

    class QuickLoader(Loader):
        """A loader that does not look into the folders of 400 services to load the model of one."""

        def list_available_services(self, type_name: str) -> list[str]:
            """Return the services that have a folder: whether it holds a model of this type, loading it tells."""
            del type_name
            folders = [folder for folder in map(Path, self.search_paths) if folder.is_dir()]
            return sorted({entry.name for folder in folders for entry in folder.iterdir()})

    return QuickLoader(create_loader(data_path).search_paths, include_default_search_paths=False)


def _key_of(profile: str | None) -> _Key:
    names = [name for name in os.environ if _matters(name)]  # a list first: other threads may change the environment
    environment = frozenset((name, os.environ.get(name)) for name in names)
    return (os.getpid(), profile, environment, *map(_digest_of, _files()))


def _matters(variable: str) -> bool:
    return (variable.startswith(_PREFIX) and variable not in _SECRETS) or variable in _VARIABLES


def _files() -> tuple[str, ...]:
    """Return the files that botocore reads, those of its oldest versions last."""
    config = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    return config, credentials, os.environ.get("BOTO_CONFIG", "~/.boto"), "/etc/boto.cfg"


def _digest_of(path: str) -> bytes | None:
    """Return what tells the contents of a file from others; None if it cannot be read. They are a few lines long."""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).digest()
    except (OSError, RuntimeError, ValueError):  # no home folder is a RuntimeError, a zero byte a ValueError
        return None

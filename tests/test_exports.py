"""Tests of the package as a whole: what each module offers, what importing costs, and which layer sees which."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

import s3torch

PACKAGE = Path(s3torch.__file__).parent
_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class _Trees(Mapping[str, ast.Module]):
    """The modules of a package, by their names. Each is parsed where it is used: all workers collect them."""

    def __init__(self, package: Path) -> None:
        self._paths = {_module_name(path, package): path for path in sorted(package.rglob("*.py"))}
        self._parsed: dict[str, ast.Module] = {}

    def __getitem__(self, name: str) -> ast.Module:
        if name not in self._parsed:
            self._parsed[name] = ast.parse(self._paths[name].read_bytes())
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


TREES = _Trees(PACKAGE)
BENCHMARKS = _Trees(_BENCHMARKS)
_ALL: Mapping[str, ast.Module] = ChainMap(BENCHMARKS, TREES)  # type: ignore[arg-type]  # nothing is set

PACKAGES = {_module_name(path, folder) for folder in (PACKAGE, _BENCHMARKS) for path in folder.rglob("__init__.py")}

# Servers, and programs that use s3torch: what holds for the library does not hold for them.
_GROUND = {"s3torch.errors", "s3torch._forks", "s3torch._log"}  # what every module may stand on
_BESIDE = ("s3torch.testing",)

each_module = pytest.mark.parametrize("name", _ALL)


def _public_names(tree: ast.Module) -> list[str] | None:
    """Return the module's ``__all__`` as it is written."""
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if isinstance(target, ast.Name) and target.id == "__all__":
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            assert node.value is not None
            return ast.literal_eval(node.value)
    return None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree except what only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            for alternative in child.orelse:
                yield from _runtime_nodes(alternative)
        else:
            yield from _runtime_nodes(child)


def imports_of(name: str) -> set[str]:
    """Return the modules that a module imports at run time, inside of functions too."""
    return _imports(name, _runtime_nodes(_ALL[name]))


def all_imports_of(name: str) -> set[str]:
    """Return the modules that a module imports, and those that only a type checker sees."""
    return _imports(name, ast.walk(_ALL[name]))


def _imports(name: str, nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            # ``from package import module`` imports the module.
            submodules = {f"{module}.{alias.name}" for alias in node.names} & _ALL.keys()
            found.update(submodules or {module})
    return found


def _importers(*modules: str) -> set[str]:
    """Return the modules of s3torch (not the benchmarks) that import any of these, or something within them."""
    wanted = tuple(f"{module}." for module in modules)
    return {name for name in TREES if any(f"{found}.".startswith(wanted) for found in imports_of(name))}


def _order(name: str) -> tuple[int, str]:
    """Return the place of a name in ``__all__``: constants, then classes, then the rest, as ruff (RUF022) sorts."""
    bare = name.lstrip("_")
    return (0 if bare.isupper() else 1 if bare[0].isupper() else 2, name)


def test_every_module_is_seen():
    """The walk below sees both packages: it finds modules of every folder."""
    assert {"s3torch", "s3torch.errors", "s3torch._transfer.http1", "s3torch._aws", "s3torch.datasets.map"} <= set(
        TREES
    )
    assert {"benchmarks", "benchmarks.cases", "benchmarks.clients.s3torch", "benchmarks.servers"} <= set(BENCHMARKS)
    assert any(each.startswith("s3torch.") for each in imports_of("benchmarks.clients.s3torch"))


@each_module
def test_all_is_true_and_sorted(name: str):
    """Every module has an ``__all__``: sorted, without repetition, of names that exist."""
    public = _public_names(_ALL[name])
    if public is None:
        assert _ALL[name].body[1:] == [], f"{name} holds code and has no __all__"
        return
    assert public == sorted(set(public), key=_order)
    module = importlib.import_module(name)
    assert [attribute for attribute in public if not hasattr(module, attribute)] == []


@pytest.mark.parametrize("name", sorted(_ALL.keys() - {"s3torch.demo"}))
def test_public_classes_are_offered(name: str):
    """Every class without an underscore stands in its module's ``__all__``, but in the demo, which is a script."""
    classes = {node.name for node in _ALL[name].body if isinstance(node, ast.ClassDef)}
    assert {each for each in classes if not each.startswith("_")} <= set(_public_names(_ALL[name]) or ())


@each_module
def test_every_module_has_a_docstring(name: str):
    """Every module says what it is."""
    assert ast.get_docstring(_ALL[name])


def test_public_names_resolve():
    """Everything that s3torch offers can be had, and ``dir`` shows exactly that."""
    assert dir(s3torch) == sorted(s3torch.__all__)
    assert [name for name in s3torch.__all__ if getattr(s3torch, name, None) is None] == []


def test_public_names_are_those_of_their_modules():
    """Every class that s3torch offers is offered by the module that it comes from."""
    for name in s3torch.__all__:
        value = getattr(s3torch, name)
        if isinstance(value, type):
            assert name in importlib.import_module(value.__module__).__all__


def test_unknown_name():
    """A name that s3torch does not have is an AttributeError that shows it."""
    with pytest.raises(AttributeError, match="module 's3torch' has no attribute 'S3Datset'"):
        _ = s3torch.S3Datset


def _modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in answer.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import s3torch",
        "from s3torch import S3Client, S3ClientConfig, S3Reader, S3ReaderConfig, S3Writer, errors",
        "import s3torch.cli",
    ],
)
def test_import_is_light(statement: str):
    """Importing s3torch, or its command, imports neither torch nor botocore nor numpy."""
    assert _modules_after(statement).isdisjoint({"torch", "botocore", "numpy"})


def test_what_is_imported_is_seen():
    """The test above can fail: botocore is seen where it is imported."""
    assert "botocore" in _modules_after("import botocore")


def test_sockets_are_in_one_place():
    """Only connection.py and what it stands on see sockets; the servers of the tests are started elsewhere."""
    importers = _importers("socket", "selectors", "select", "asyncio")
    assert {name for name in importers if not name.startswith(_BESIDE)} == {
        f"s3torch._transfer.{name}" for name in ("addresses", "connection", "open_sockets", "racing", "selecting")
    }


def test_tls_is_in_two_places():
    """Only connection.py speaks TLS, with the context that tls.py makes."""
    importers = {name for name in _importers("ssl") if not name.startswith(_BESIDE)}
    assert importers == {"s3torch._transfer.connection", "s3torch._aws.tls"}


def test_threads_are_started_in_two_places():
    """Nothing runs in the background but save_async; what a large read starts ends with it; locks are no threads."""
    importers = _importers("concurrent", "multiprocessing", "_thread", "queue")
    asks = "s3torch.datasets.one_listing"  # whether it is pickled for a process that is being started: it starts none
    assert {name for name in importers if not name.startswith(_BESIDE)} == {"s3torch.checkpoint.file", asks}
    names = {
        name for name in imports_of(asks) if name.startswith(("concurrent", "multiprocessing", "_thread", "queue"))
    }
    assert names == {"multiprocessing.context"}
    processes = _importers("subprocess")
    assert {name for name in processes if not name.startswith(_BESIDE)} == {"s3torch.checkpoint.saving_process"}
    started = {
        (name, node.attr)
        for name in TREES
        if not name.startswith((*_BESIDE, "s3torch.demo"))
        for node in _runtime_nodes(TREES[name])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "threading"
    }
    assert {
        name for name, attribute in started if attribute not in {"local", "Lock", "RLock", "Condition", "get_ident"}
    } == {
        "s3torch.checkpoint.file",
        "s3torch._objects.spread",
    }


def test_torch_is_for_datasets_and_checkpoints():
    """The client and the readers know nothing of torch."""
    allowed = (
        "s3torch.datasets*",
        "s3torch.checkpoint*",
        "s3torch.compat*",
        "s3torch.demo",
        "s3torch._own_bench",
        "s3torch.testing.simulate*",
        "s3torch.testing.conformance.training",
    )
    assert {name for name in _importers("torch") if not any(fnmatch(name, each) for each in allowed)} == set()


def test_botocore_is_in_two_places():
    """Only session.py and configuration.py see botocore, and the server for tests, which has a bucket made by it."""
    assert _importers("botocore") <= {"s3torch._aws.session", "s3torch._aws.configuration", "s3torch.testing.local"}


def test_nothing_imports_the_benchmarks():
    """Nothing of s3torch imports the benchmarks, which are not installed, and only the command its own."""
    assert _importers("benchmarks") == set()
    assert _importers("s3torch._own_bench") == {"s3torch.cli"}


@pytest.mark.parametrize(
    "name",
    [
        "s3torch.errors",
        "s3torch.config",
        "s3torch.uri",
        "s3torch._transfer.http1",
        "s3torch._transfer.plan",
        "s3torch._transfer.retry",
        "s3torch._transfer.buffers",
        "s3torch._transfer.stats",
        "s3torch._aws.sigv4",
        "s3torch._aws.answers",
        "s3torch._aws.checksums",
        "s3torch._aws.quoting",
        "s3torch._aws.key_ranges",
        "s3torch._aws.listing",
        "s3torch.readers.window",
        "s3torch.checkpoint.safetensors.format",
        "s3torch.checkpoint.safetensors.slices",
    ],
)
def test_pure_modules(name: str):
    """A pure module needs the standard library, the errors and what computes checksums; it does no input or output."""
    imports = imports_of(name)
    ours = {each for each in imports if each.startswith("s3torch")}
    others = {each.partition(".")[0] for each in imports - ours}
    assert ours <= {"s3torch._aws.quoting", *_GROUND} - {"s3torch._log"}
    harmless = sys.stdlib_module_names - {"asyncio", "http", "select", "selectors", "socket", "ssl"}
    assert others <= {"awscrt", "zlib_ng", *harmless}


def test_layers():
    """The transfer layer knows nothing of AWS, and neither knows anything above it."""
    for name in TREES:
        ours = {each for each in imports_of(name) if each.startswith("s3torch.")}
        if name.startswith("s3torch._transfer."):
            assert {each for each in ours if not each.startswith("s3torch._transfer.")} <= _GROUND, name
        elif name.startswith("s3torch._aws."):
            lower = ("s3torch._aws.", "s3torch._transfer.")
            assert {each for each in ours if not each.startswith(lower)} <= {*_GROUND, "s3torch._version"}, name


def test_the_client_is_imported_from_above_only():
    """Nothing that the client stands on imports the client at run time."""
    above = {"s3torch", "s3torch.cli", "s3torch.demo", "s3torch._own_bench", "s3torch.__main__"}
    folders = ("s3torch.datasets", "s3torch.checkpoint", "s3torch.compat", *_BESIDE)
    importers = {name for name in _importers("s3torch.client") if not name.startswith(folders)}
    assert importers <= above


def test_nothing_knows_of_the_drop_in():
    """Nothing of s3torch imports what stands for s3torchconnector, or s3torchconnector itself."""
    users = _importers("s3torch.compat", "s3torchconnector", "s3torchconnectorclient")
    assert {name for name in users if not name.startswith("s3torch.compat")} == set()


def test_imports_go_round_no_circle():
    """The imports of all modules form no circle, those that only a type checker sees included.

    The simulator is left out of the latter: its programs, their steps and what runs them are told apart for the reader.
    """

    def edges_of(name: str) -> set[str]:
        found = imports_of(name) if name.startswith("s3torch.testing.simulate") else all_imports_of(name)
        return {each for each in found if each in _ALL and each != "s3torch"}

    open_edges = {name: edges_of(name) for name in _ALL}
    while leaves := {name for name, edges in open_edges.items() if not edges}:
        open_edges = {name: edges - leaves for name, edges in open_edges.items() if name not in leaves}
    assert open_edges == {}


def test_layers_of_the_library():
    """Readers, writers and listings stand on access and objects, and know nothing of the client."""
    order = [
        ("s3torch._transfer.", "s3torch._aws.", "s3torch.config"),
        ("s3torch._access",),
        ("s3torch._objects.",),
        ("s3torch.readers", "s3torch.writer"),
        ("s3torch.client",),
        ("s3torch.datasets", "s3torch.checkpoint"),
    ]
    for level, layer in enumerate(order):
        above = tuple(name for higher in order[level + 1 :] for name in higher)
        for name in (name for name in TREES if name.startswith(layer)):
            assert not {each for each in all_imports_of(name) if each.startswith(above)}, name


def test_long_files_say_why():
    """A file of more than 450 lines says at its head why it is one."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 450 or "over 450 lines" in (ast.get_docstring(ast.parse(text)) or ""), path


def test_the_client_is_a_thin_face():
    """What the client offers is what users need: how it sends is none of it."""
    names = {name for name in dir(s3torch.S3Client) if not name.startswith("_")}
    assert not names & {"engine", "bucket", "run_apart", "call_rarely", "remote_object"}

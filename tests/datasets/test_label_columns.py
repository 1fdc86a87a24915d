"""Labels by a column of a manifest: from the file to the batch, with all that may leave rows out on the way."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from array import array
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from s3torch import S3Client, S3DataLoader, S3IterableDataset, S3MapDataset, S3Reader
from s3torch.datasets import Filter, Manifest, ObjectTable, Prefix, S3BucketKeyData, by_column, by_folder, by_stem
from s3torch.datasets.grouping import group
from s3torch.datasets.labels import Labels, label
from s3torch.datasets.sources import Known, Objects, Table
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    EmptyDatasetError,
    LoaderStateError,
    ManifestError,
    ObjectTableError,
    SampleLayoutError,
)

KINDS = [S3MapDataset, S3IterableDataset]
FORMATS = ["csv", "jsonl", "parquet"]
Label = str | int
Row = tuple[str, Label]  # a URI and its label


def name(reader: S3Reader) -> str:
    """Return what is below the test's prefix."""
    return reader.key.partition("/")[2]


def _as_given(samples: list) -> list:
    return samples


def _all(dataset: S3MapDataset | S3IterableDataset) -> list:
    return list(dataset) if isinstance(dataset, S3IterableDataset) else [dataset[i] for i in range(len(dataset))]


def _csv(rows: list[list[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


def _manifest(rows: list[Row], kind: str, column: str = "label") -> bytes:
    """Return a manifest of rows, with another column beside that of the labels."""
    if kind == "csv":
        return _csv([["other", column, "uri"], *(["x", each, uri] for uri, each in rows)])
    if kind == "jsonl":
        lines = [{column: each, "other": [1.5], "uri": uri} for uri, each in rows]
        return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
    is_mixed = len({type(each) for _, each in rows}) > 1
    labels = pa.array([str(each) if is_mixed else each for _, each in rows], None if rows else pa.string())
    uris = pa.array([uri for uri, _ in rows], pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({column: labels, "uri": uris}), sink, row_group_size=4)
    return sink.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file: ``file(content, name)``."""

    def write(content: bytes, called: str = "manifest") -> Path:
        (tmp_path / called).write_bytes(content)
        return tmp_path / called

    return write


def _table(place: Path, column: str = "label") -> ObjectTable:
    return Manifest(place).table(S3Client(), column)


def _labelled(rows: list[Row], file: Callable[..., Path], **options: object) -> Labels:
    """Return the labels of rows, by way of a file."""
    return label(_table(file(_manifest(rows, "jsonl"), "m.jsonl")), None, by_column("label", **options))


def _rows(*labels: Label) -> list[Row]:
    return [(f"s3://b/{number}", each) for number, each in enumerate(labels)]


# --- Datasets --------------------------------------------------------------------------------------------------------

KEYS = ["1.jpg", "é 🦜.jpg", "with, comma.jpg", "2.jpg", "1.jpg", "3.txt"]
LABELS = ["dog", "cat", "ähre", "cat", "Zebra", "cat"]  # of 1.jpg there are two
CLASSES = ["Zebra", "cat", "dog", "ähre"]
TARGETS = [2, 1, 3, 1, 0, 1]


@pytest.fixture
def rows(s3, bucket, prefix, put) -> list[Row]:
    """Store objects; returns their URIs with labels."""
    for each in {*KEYS}:
        put(prefix + each, each.encode())
    return [(f"s3://{bucket}/{prefix}{key}", each) for key, each in zip(KEYS, LABELS, strict=True)]


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_dataset(made, kind, rows, file):
    """The class of a sample is what its row says; an object that is there twice has the label of each row."""
    path = file(_manifest(rows, kind), f"train.{kind}")
    expected = list(zip(KEYS, TARGETS, strict=True))
    for dataset in (
        made.from_manifest(path, labels=by_column("label"), transform=name),
        made.from_source(Manifest(path, kind), labels=by_column("label"), transform=name),
    ):
        assert dataset.classes == CLASSES
        assert dataset.class_to_idx == {each: index for index, each in enumerate(CLASSES)}
        assert list(dataset.targets) == TARGETS
        assert _all(dataset) == expected
        assert _all(pickle.loads(pickle.dumps(dataset))) == expected
    plain = made.from_manifest(path, transform=name)
    assert _all(plain) == KEYS
    assert (plain.objects.label_column, dataset.objects.label_column) == (None, "label")
    assert plain.objects.digest == dataset.objects.digest


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_manifest_in_s3(made, zipped, rows, bucket, prefix, put):
    """The manifest may be an object, compressed, with a byte order mark."""
    text = b"\xef\xbb\xbf" + _manifest(rows, "csv")
    put(f"{prefix}m.csv", gzip.compress(text) if zipped else text)
    dataset = made.from_manifest(f"s3://{bucket}/{prefix}m.csv", labels=by_column("label"), transform=name)
    assert _all(dataset) == list(zip(KEYS, TARGETS, strict=True))


@pytest.mark.parametrize("made", KINDS)
def test_a_filter(made, rows, file):
    """Labels stay with their rows, and a class whose rows are left out is none."""
    path = file(_manifest(rows, "csv"))
    dataset = made.from_manifest(path, labels=by_column("label"), filter=Filter(glob="*/[12].*"), transform=name)
    assert dataset.classes == ["Zebra", "cat", "dog"]
    assert _all(dataset) == [("1.jpg", 2), ("2.jpg", 1), ("1.jpg", 0)]
    with pytest.raises(EmptyDatasetError, match="leaves none of the 6 objects"):
        _all(made.from_manifest(path, labels=by_column("label"), filter=Filter(suffix=".png")))


@pytest.mark.parametrize("made", KINDS)
def test_samples_of_several_objects(made, rows, file, put, prefix):
    """All objects of a sample must have the same label, as with folders; objects of no sample may have any."""
    for number in (1, 2):
        put(f"{prefix}{number}.txt", b"text")
    uris = [uri for uri, _ in rows[3:4]] + [rows[0][0], rows[3][0].replace("jpg", "txt"), rows[0][0][:-3] + "txt"]
    uris.append(rows[-1][0].replace("txt", "png"))

    def dataset(labels: list[str]) -> S3MapDataset:
        path = file(_manifest(list(zip(uris, labels, strict=True)), "csv"))
        joined = by_stem(".jpg", ".txt")
        return made.from_manifest(path, labels=by_column("label"), samples=joined, transform=sorted)

    assert _all(dataset(["b", "a", "b", "a", "c"])) == [([".jpg", ".txt"], 1), ([".jpg", ".txt"], 0)]
    assert dataset(["b", "a", "b", "a", "c"]).classes == ["a", "b"]
    with pytest.raises(SampleLayoutError, match=r"several classes: s3://.*/1.jpg is 'a', and s3://.*/1.txt is 'c'"):
        _all(dataset(["b", "a", "b", "c", "a"]))


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers(made, method, rows, file, forkserver, tmp_path):
    """Workers of each start method know the labels, of a manifest and of a table, without reading either again."""
    path = file(_manifest(rows, "csv"))
    loaded = made.from_manifest(path, labels=by_column("label"), filter=Filter(suffix=".jpg"), transform=name)
    loaded.objects.save(tmp_path / "table")
    path.unlink()
    mapped = made.from_table(tmp_path / "table", labels=by_column("label"), transform=name)
    expected = sorted(zip(KEYS[:-1], TARGETS[:-1], strict=True))
    context = forkserver if method == "forkserver" else method
    for dataset in (loaded, mapped):
        loader = S3DataLoader(dataset, 2, num_workers=2, multiprocessing_context=context, collate_fn=_as_given)
        assert sorted(sample for batch in loader for sample in batch) == expected


def test_a_state_knows_the_labels(rows, file):
    """A job goes on where it was, over the same labels however they are named, and is refused over others."""

    def loader(labels: list[Label], kind: str = "csv", **options: object) -> S3DataLoader:
        path = file(_manifest([(uri, each) for (uri, _), each in zip(rows, labels, strict=True)], kind), kind)
        dataset = S3MapDataset.from_manifest(path, labels=by_column("label", **options), transform=name)
        return S3DataLoader(dataset, 2, shuffle=True, seed=3, collate_fn=_as_given)

    first = loader(LABELS)
    batches = iter(first)
    begun = next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    for second in (loader(LABELS), loader(LABELS, "jsonl"), loader(LABELS, "parquet", classes=CLASSES)):
        second.load_state_dict(state)
        assert sorted([*begun, *(sample for batch in second for sample in batch)]) == sorted(
            zip(KEYS, TARGETS, strict=True)
        )
    for other in (loader(LABELS[::-1]), loader(LABELS, classes=CLASSES[::-1]), loader([1, 2, 3, 4, 5, 6])):
        with pytest.raises(LoaderStateError, match=r"labels '4 classes, .*' \(here "):
            other.load_state_dict(state)


# --- Names of classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 2, -1, 0], ["-1", "0", "2", "10"]),
        (["10", "2", "-1", "0"], ["-1", "0", "2", "10"]),
        (["10", "2", "b"], ["10", "2", "b"]),
        (["010", "2"], ["010", "2"]),
        (["+10", "2"], ["+10", "2"]),
        (["-0", "2", "10"], ["-0", "10", "2"]),
        (["1_0", "2"], ["1_0", "2"]),
        (["٣", "2", "10"], ["10", "2", "٣"]),
        (["1" * 101, "2"], ["1" * 101, "2"]),
        (["1" * 100, "2"], ["2", "1" * 100]),
        ([2**63 - 1, 7], ["7", str(2**63 - 1)]),
        (["b", "B", "ä", " b", "null", "1.x", "v1.0", "1e5", "nano"], None),
    ],
)
def test_names_are_sorted(file, kind, labels, classes):
    """They are sorted as numbers if all are integers as Python writes them, else as text, in each format alike."""
    found = label(_table(file(_manifest(_rows(*labels), kind))), None, by_column("label"))
    classes = classes or sorted(labels)
    assert list(found.classes) == classes
    assert [found.classes[target] for target in found.targets] == [str(each) for each in labels]


def test_integers_and_their_text_are_one(file):
    """A file that has both, as JSON may, has one class of them."""
    found = _labelled(_rows(1, "1", 2), file)
    assert (found.classes, list(found.targets)) == (("1", "2"), [0, 0, 1])


def test_classes_that_are_named(file):
    """Their order is that of the indices, and integers stand for their text; one too many or too few is an error."""
    found = _labelled(_rows(3, 0, 3), file, classes=range(4), allow_empty=True)
    assert (found.classes, list(found.targets)) == (("0", "1", "2", "3"), [3, 0, 3])
    assert list(_labelled(_rows("b", "a"), file, classes=["b", "a"]).targets) == [0, 1]
    with pytest.raises(SampleLayoutError, match=r"2 of 4 classes have no sample: '1', '2'\. .* to by_column if"):
        _labelled(_rows(3, 0, 3), file, classes=range(4))
    with pytest.raises(
        SampleLayoutError,
        match=r"3 objects have 2 labels that are no class: 'b', 'c'\. by_column\('label', classes=\('a',\)\) names 1",
    ):
        _labelled(_rows("a", "b", "c", "c"), file, classes=["a"])


def test_by_column_is_a_value():
    """Equal ones are equal and pickle, and the repr is what a program would write."""
    given_classes = by_column("label", classes=["a", 1], allow_empty=True)
    assert given_classes == pickle.loads(pickle.dumps(given_classes)) != by_column("label")
    assert repr(given_classes) == "by_column('label', classes=('a', '1'), allow_empty=True)"
    assert repr(by_column("label")) == "by_column('label')"
    assert len({by_column("label"), by_column("label"), by_folder()}) == 2


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: by_column(3), ArgumentTypeError, "needs the name of a column, got 3"),
        (lambda: by_column("a", classes="cat"), ArgumentTypeError, "must be a list of names, got 'cat'"),
        (lambda: by_column("a", classes=[1.0]), ArgumentTypeError, "must be str"),
        (lambda: by_column("a", classes=[True]), ArgumentTypeError, "must be str"),
        (lambda: by_column("a", classes=[]), ArgumentError, "at least one class"),
        (lambda: by_column("a", classes=[1, "1"]), ArgumentError, "none of them twice"),
        (lambda: by_column("a", allow_empty=1), ArgumentTypeError, "allow_empty must be a bool"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], match: str):
    """What cannot work is refused where it is made."""
    with pytest.raises(error, match=match):
        make()


# --- What is written is read -----------------------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5)
_labels = st.integers(-20, 20) | _texts.filter(lambda text: text.strip() and "." not in text and text.lower() != "nan")
_keys = st.tuples(st.sampled_from(["a", "b", "c", "é,", 'd"']), st.sampled_from([".x", ".y", ".z"]))


def _has_no_a(item: S3BucketKeyData) -> bool:
    return not item.key.startswith("a")


@given(
    st.lists(st.tuples(_keys, _labels), max_size=12) | st.lists(st.tuples(_keys, st.sampled_from([1, 2])), max_size=12),
    st.sampled_from(FORMATS),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: list, kind: str, filtered: bool, grouped: bool, saved: bool
):
    """Labels come back from each format, through a filter, a saved table and samples of several objects."""
    directory = tmp_path_factory.getbasetemp()
    if grouped:
        pairs = list(dict(pairs).items())  # an object that is there twice is no member of one sample
    rows = [(f"s3://b/{stem}{suffix}", each) for (stem, suffix), each in pairs]
    (directory / f"m.{kind}").write_bytes(_manifest(rows, kind))
    table = _table(directory / f"m.{kind}")
    kept = [(key, str(each)) for key, each in pairs if not filtered or key[0] != "a"]
    if filtered:
        table = table._chosen(_has_no_a)
    if saved:
        table.save(directory / "labels.table")
        table = ObjectTable.load(directory / "labels.table", verify=True)
    assert [item.key for item in table] == ["".join(key) for key, _ in kept]
    assert ObjectTable(table).digest == table.digest
    if grouped:
        groups = group(table, by_stem(".x", optional=[".y"], missing="skip"))
        expected = _samples(kept)
    else:
        groups, expected = None, [{each} for _, each in kept]
    if any(len(each) > 1 for each in expected):
        with pytest.raises(SampleLayoutError, match="of several classes"):
            label(table, groups, by_column("label"))
        return
    found = label(table, groups, by_column("label"))
    assert [found.classes[target] for target in found.targets] == [each for (each,) in expected]
    assert {*found.classes} == {each for (each,) in expected}
    assert label(pickle.loads(pickle.dumps(table)), groups, by_column("label")) == found


def _samples(rows: list) -> list[set[str]]:
    """Return the labels of samples that have an ``.x``, in the order of their first objects whose suffix counts."""
    stems = dict.fromkeys(stem for (stem, suffix), _ in rows if suffix != ".z")
    of = dict(rows)
    return [
        {of[stem, suffix] for suffix in (".x", ".y") if (stem, suffix) in of} for stem in stems if (stem, ".x") in of
    ]


# --- What is refused -------------------------------------------------------------------------------------------------

BAD = [
    (b"uri,label\ns3://b/k,a\ns3://b/k,\n", r"Line 3 of .*m has '' as 'label', and a label must not be empty"),
    (b'uri,label\n"s3://b/two\nlines",a\ns3://b/k," "\n', r"Line 4 of .* has ' ' as 'label', and .* not be empty"),
    (b"uri,label\ns3://b/k,1\ns3://b/k,1.0\n", r"Line 3 of .* has '1.0' as 'label', .* text or an integer.* point"),
    (b"uri,label\ns3://b/k,.5\n", r"Line 2 of .* has '.5' as 'label'"),
    (b"uri,label\ns3://b/k,-1.E+05\n", r"Line 2 of .* has '-1.E\+05' as 'label'"),
    (b"uri,label\ns3://b/k,nan\n", r"Line 2 of .* has 'nan' as 'label'"),
    (b"uri,label\r\ns3://b/k,NaN\r\n", r"Line 2 of .* has 'NaN' as 'label'"),
    (b"uri,label\ns3://b/k,\xff\n", r"Line 2 of .* has the 'label' .*, which is no UTF-8"),
    (b"uri,label\ns3://b/k\n", r"Line 2 of .* has 1 fields, and the first line 2"),
    (b"uri,class,x\ns3://b/k,a,b\n", r"m has no column 'label'. Its columns are: 'uri', 'class', 'x'"),
    (b"uri,Label\ns3://b/k,a\n", r"has no column 'label'. Its columns are: 'uri', 'Label'"),
    (b"uri,label,label\ns3://b/k,a,b\n", r"has 2 columns 'label', and one is needed"),
    (
        b"s3://b/k,a\n",
        r"m has no column 'label': it has no header, and begins with 's3://b/k'. .* such as: uri,label",
    ),
    (b'{"uri": "s3://b/k", "label": "a"}\n\n{"uri": "s3://b/k"}\n', r"Line 3 of .* no field 'label'. .* are: 'uri'"),
    (b'{"uri": "s3://b/k", "label": null}\n', r"Line 1 of .* has None as 'label', and a label is text or an integer"),
    (b'{"uri": "s3://b/k", "label": ""}\n', r"Line 1 of .* has '' as 'label', and a label must not be empty"),
    (b'{"uri": "s3://b/k", "label": 1.0}\n', r"Line 1 of .* has 1.0 as 'label', and a label is text or an integer"),
    (b'{"uri": "s3://b/k", "label": NaN}\n', r"Line 1 of .* has nan as 'label'"),
    (b'{"uri": "s3://b/k", "label": true}\n', r"Line 1 of .* has True as 'label'"),
    (b'{"uri": "s3://b/k", "label": ["a"]}\n', r"Line 1 of .* has \['a'\] as 'label'"),
    (b'{"uri": "s3://b/k", "label": "\\ud800"}\n', r"Line 1 of .* has the 'label' .*, which is no UTF-8"),
    (b'{\n "version": "2016-11-30"\n}', r"m is an S3 Inventory, which has no column of labels: there is no 'label'"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("made", KINDS)
def test_bad_labels(file, text, message, made):
    """What is no label is an error with the file and the line; a missing column one with those that are there."""
    path = file(text, "m")
    with pytest.raises(ManifestError, match=message) as caught:
        made.from_manifest(path, labels=by_column("label"))
    assert str(path) in str(caught.value)


def test_bad_labels_of_parquet(file):
    """They are errors with their rows, whatever type the column has; a column of categories is text."""
    uris = ["s3://b/k"] * 6

    def written(labels: object) -> Path:
        sink = io.BytesIO()
        pq.write_table(pa.table({"uri": uris, "label": labels}), sink, row_group_size=4)
        return file(sink.getvalue())

    for labels, message in (
        (["a"] * 5 + [None], r"Row 6 of .* has None as 'label', and a label is text or an integer"),
        (["a"] * 4 + ["", "b"], r"Row 5 of .* has '' as 'label', and a label must not be empty"),
        ([1.0] * 6, r"Row 1 of .* has 1.0 as 'label'"),
        ([1, 2, 3, 4, 5, None], r"Row 6 of .* has None as 'label'"),
        ([True] * 6, r"Row 1 of .* has True as 'label'"),
        ([b"a"] * 6, r"Row 1 of .* has b'a' as 'label'"),
    ):
        with pytest.raises(ManifestError, match=message):
            _table(written(labels))
    with pytest.raises(ManifestError, match=r"has no column 'name'. Its columns are: 'uri', 'label'"):
        _table(written(["a"] * 6), "name")
    categories = pa.array(["b", "a"] * 3).dictionary_encode()
    assert list(label(_table(written(categories)), None, by_column("label")).targets) == [1, 0] * 3
    # Text that looks like a number is text where the format tells.
    assert label(_table(written(["1.5", "nan"] * 3)), None, by_column("label")).classes == ("1.5", "nan")


def test_columns_that_are_read_anyway(file):
    """The labels may be in a column that says something else as well."""
    path = file(b"uri,size\ns3://b/a,7\ns3://b/b,5\n")
    for column, classes in (("uri", ("s3://b/a", "s3://b/b")), ("size", ("5", "7"))):
        assert label(_table(path, column), None, by_column(column)).classes == classes
    parquet = file(_manifest(_rows("a", "b"), "parquet"))
    assert label(_table(parquet, "uri"), None, by_column("uri")).classes == ("s3://b/0", "s3://b/1")


@pytest.mark.parametrize("made", KINDS)
def test_sources_without_columns(made, file, tmp_path):
    """What has no such column is refused where the dataset is made, or asked for its samples, with what there is."""
    table = ObjectTable([S3BucketKeyData("b", "k")])
    other = _table(file(_manifest(_rows("a"), "csv", "class")), "class")
    other.save(tmp_path / "t")
    for source, message in (
        (Prefix("s3://b/p/"), r"There is no column 'label' in s3://b/p/: a listing has no columns"),
        (Objects(["s3://b/k"]), r"There is no column 'label' in the dataset's source: its objects have no columns"),
        (Table(table), r"its objects have no columns\. labels=by_column\('label'\) needs a manifest"),
        (Table(other), "it has kept 'class'"),
        (Manifest(tmp_path / "t"), rf"There is no column 'label' in {tmp_path}/t: it has kept 'class'"),
    ):
        with pytest.raises(SampleLayoutError, match=message):
            made.from_source(source, labels=by_column("label"))
    dataset = made(None, lambda _client: list(table), labels=by_column("label"))
    with pytest.raises(SampleLayoutError, match="There is no column 'label' in the dataset's source"):
        _all(dataset)


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("text", [b"", b"uri,label\n", gzip.compress(b"", mtime=0)])
def test_an_empty_manifest(made, text, file):
    """A manifest that names nothing has no classes, if that is allowed."""
    path = file(text)
    with pytest.raises(EmptyDatasetError):
        _all(made.from_manifest(path, labels=by_column("label")))
    dataset = made.from_manifest(path, labels=by_column("label"), allow_empty=True)
    assert (_all(dataset), dataset.classes, list(dataset.targets)) == ([], [], [])


# --- Tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", KINDS)
def test_a_saved_table(made, rows, file, tmp_path, bucket, prefix):
    """A dataset's table keeps its labels, in a file and in S3; without the option they are left alone."""
    path = file(_manifest(rows, "csv"))
    objects = made.from_manifest(path, labels=by_column("label"), filter=Filter(suffix=".jpg")).objects
    places = [objects, tmp_path / "table", f"s3://{bucket}/{prefix}table"]
    expected = list(zip(KEYS, TARGETS, strict=True))[:-1]
    for place in places:
        if place is not objects:
            objects.save(place)
        dataset = made.from_table(place, labels=by_column("label"), transform=name)
        assert dataset.classes == CLASSES
        assert _all(dataset) == _all(pickle.loads(pickle.dumps(dataset))) == expected
        assert _all(made.from_table(place, transform=name)) == KEYS[:-1]
    assert _all(made.from_manifest(tmp_path / "table", labels=by_column("label"), transform=name)) == expected
    given_by_a_program = made(None, lambda _client: objects, labels=by_column("label"), transform=name)
    assert _all(given_by_a_program) == expected


def test_a_program_whose_tables_change(rows, file):
    """A stream whose labels are others in the next epoch refuses to go on with other indices, unless they are named."""

    def tables() -> Callable[[S3Client], ObjectTable]:
        left = [_table(file(_manifest([(uri, each) for uri, _ in rows], "csv"))) for each in "ba"]
        return lambda _client: left.pop()

    stream = S3IterableDataset(None, tables(), labels=by_column("label"), transform=name)
    assert _all(stream) == [(key, 0) for key in KEYS]
    with pytest.raises(SampleLayoutError, match=r"1 are new \['b'\], 1 are gone \['a'\]. .* Name them: classes="):
        _all(stream)
    named = by_column("label", classes=["a", "b"], allow_empty=True)
    stream = S3IterableDataset(None, tables(), labels=named, transform=name)
    loader = DataLoader(stream, None, num_workers=1, multiprocessing_context="fork")
    assert [*map(tuple, loader)] == [(key, 0) for key in KEYS]
    assert [_all(stream) for _ in range(2)] == [[(key, index) for key in KEYS] for index in range(2)]


def test_a_copy_of_a_saved_table(s3, bucket, prefix, file, tmp_path):
    """A table of an object that is kept on this machine keeps its labels."""
    table = _table(file(_manifest(_rows("b", "a"), "csv")))
    table.save(f"s3://{bucket}/{prefix}t")
    for _ in range(2):
        copy = ObjectTable.load(f"s3://{bucket}/{prefix}t", cache_dir=tmp_path / "copies")
        assert list(label(copy, None, by_column("label")).targets) == [1, 0]


def test_a_file_that_gets_other_labels(file, tmp_path):
    """A table whose file was replaced by one of the same objects with other labels is never taken for the same."""
    old, new = (_table(file(_manifest(_rows(*labels), "csv"))) for labels in ("ab", "ba"))
    assert old.digest == new.digest
    assert Known(old) != Known(new)
    assert Known(old) == Known(pickle.loads(pickle.dumps(old)))
    path = tmp_path / "t"
    old.save(path)
    mapped = ObjectTable.load(path)
    by_path = pickle.dumps(mapped)
    new.save(path)
    whole = pickle.dumps(mapped)
    assert list(label(pickle.loads(whole), None, by_column("label")).targets) == [0, 1]
    with pytest.raises(ObjectTableError, match=f"{path} has other labels than when it was pickled"):
        pickle.loads(by_path)
    # A version that knew no labels has pickled this.
    old_pickle = ObjectTable.load.__globals__["_mapped_again"]
    assert list(old_pickle(str(path), old.digest)) == list(old)


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_the_labels_of_many_rows_are_small(file):
    """Each row takes 4 bytes in the table, and each sample 8 for its target."""
    path = file(b"uri,label\n" + b"".join(b"s3://b/%06d,class %d\n" % (n, n % 10) for n in range(20_000)))
    plain, table = Manifest(path).table(S3Client()), _table(path)
    assert len(pickle.dumps(table)) - len(pickle.dumps(plain)) < 20_000 * 4 + 500
    found = label(table, None, by_column("label"))
    assert isinstance(found.targets, array)
    assert len(pickle.dumps(found)) < 20_000 * 8 + 500

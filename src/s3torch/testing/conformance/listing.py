"""Checks of listings, which datasets are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch._aws.answers import element_text
from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import equal, same_bytes, that

if TYPE_CHECKING:
    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS"]

CHECKS = Checks()

# In the order of their UTF-8 bytes, which is not that of folders (`a/` before `a-`), of letters without case, of UTF-16
# (a character beyond U+FFFF before U+FB01) or of a dictionary.
_ORDERED = ("B", "a!", "a-b", "a.b", "a/b", "a/c", "a0", "aB", "ab", "z", "é", "\ufb01", "\U00010000")


def _put_all(site: Site, names: tuple[str, ...]) -> str:
    folder = site.folder()
    for name in names:
        site.put(name.encode(), folder + name)
    return folder


def _names(site: Site, folder: str, **query: str) -> list[str]:
    """Return the keys of one raw page, without the folder."""
    from s3torch._aws.listing import parse_page

    parameters = {"list-type": "2", "encoding-type": "url", "prefix": folder, **query}
    answer = site.send("GET", None, query=parameters)
    equal(answer.status, 200, "the status of a listing")
    return [info.key[len(folder) :] for info in parse_page(answer.body).object_info]


@CHECKS.add(
    "list.prefix",
    "A listing has all keys that begin with the prefix, also within a name, and no other; sizes are right.",
    "Datasets of a prefix miss samples, or have those of others.",
)
def _prefix(site: Site) -> None:
    folder = site.folder()
    for name in ("images/1", "images/12", "images/2", "imagesx", "other"):
        site.put(b"x" * len(name), folder + name)
    for prefix, wanted in (
        ("images/1", ["images/1", "images/12"]),
        ("images/", ["images/1", "images/12", "images/2"]),
        ("im", ["images/1", "images/12", "images/2", "imagesx"]),
        ("none", []),
    ):
        listed = site.listed(folder + prefix)
        equal(sorted(info.key[len(folder) :] for info in listed), wanted, f"the listing of the prefix {prefix!r}")
        sizes = {info.key[len(folder) :]: info.size for info in listed}
        equal(sizes, {name: len(name) for name in wanted}, f"the sizes below the prefix {prefix!r}")


@CHECKS.add(
    "list.pages",
    "Pages of 10 keys have each of 25 keys once, and end.",
    "Datasets of more than 1,000 objects miss samples, have some twice, or never begin.",
    needs=["list.prefix"],
)
def _pages(site: Site) -> None:
    names = tuple(f"{number:02}" for number in range(25))
    folder = _put_all(site, names)
    pages = []
    for page in site.client.list_objects(site.bucket, folder, max_keys=10):
        pages.append([info.key[len(folder) :] for info in page.object_info])
        that(len(pages) <= 50, "a listing of 25 keys has more than 50 pages")
    equal(sorted(name for page in pages for name in page), list(names), "the keys of all pages")
    that(max(map(len, pages)) <= 10, f"a page of at most 10 keys has {max(map(len, pages))}")


@CHECKS.add(
    "list.fresh",
    "A listing knows at once what was put, replaced and deleted, with its size.",
    "A dataset that is made after a change may have what was there before, or miss what is there now.",
    needs=["list.prefix", "delete.object"],
)
def _fresh(site: Site) -> None:
    key = site.key("fresh")
    for size in (0, 100, 50):
        site.put(b"x" * size, key)
        equal([(info.key, info.size) for info in site.listed(key)], [(key, size)], f"the listing after {size} bytes")
    site.client.delete_object(site.bucket, key)
    equal([info.key for info in site.listed(key)], [], "the listing after the object was deleted")


@CHECKS.add(
    "list.etag",
    "The listing tells the ETag that HEAD tells, with its quotes.",
    "An object that is opened by what a listing says of it (object_info=..., S3IterableDataset) may be an "
    "ObjectChangedError.",
    needs=["list.prefix", "object.etag", "checksum.right"],
)
def _etag(site: Site) -> None:
    key = site.put(b"content")
    page = site.send("GET", None, query={"list-type": "2", "prefix": key})
    etag = site.send("HEAD", key).answered.get("etag")
    equal(element_text(page.body, "ETag"), etag, "the ETag listed")
    [listed] = site.listed(key)
    with site.client.get_object(site.bucket, key, object_info=listed) as reader:
        same_bytes(reader.read(), b"content", "the object that was opened by what the listing says of it")


@CHECKS.add(
    "list.order",
    "Keys are listed in the order of their UTF-8 bytes.",
    "Samples have another order than on S3: the same order again only from this server. Nothing is lost.",
    needs=["list.prefix"],
)
def _order(site: Site) -> None:
    folder = _put_all(site, _ORDERED)
    listed = [info.key[len(folder) :] for info in site.listed(folder)]
    equal(sorted(listed), sorted(_ORDERED), "the keys")
    equal(listed, list(_ORDERED), "their order")


@CHECKS.add(
    "list.start-after",
    "start-after begins a page behind a key, whether there is such a key or not.",
    "Large prefixes are listed by more requests, or one page after the other.",
    needs=["list.prefix"],
)
def _start_after(site: Site) -> None:
    names = ("a", "b", "c", "d")
    folder = _put_all(site, names)
    for after, wanted in (("b", ["c", "d"]), ("bb", ["c", "d"]), ("", list(names)), ("d", [])):
        listed = _names(site, folder, **{"start-after": folder + after})
        equal(sorted(listed), wanted, f"the keys after {after!r}")


@CHECKS.add(
    "list.delimiter",
    "A delimiter of `/` groups keys as folders, over pages as well.",
    "Looking for checkpoints by their folders (s3torch.checkpoint's series) misses some.",
    needs=["list.prefix"],
)
def _delimiter(site: Site) -> None:
    folder = _put_all(site, ("a", "d/1", "d/2", "e/1", "f"))
    for max_keys in (1000, 1):
        keys: list[str] = []
        groups: list[str] = []
        for number, page in enumerate(site.client.list_objects(site.bucket, folder, "/", max_keys)):
            keys += [info.key[len(folder) :] for info in page.object_info]
            groups += [group[len(folder) :] for group in page.common_prefixes]
            that(number < 50, "a listing of 4 entries has more than 50 pages")
        equal(
            (sorted(keys), sorted(groups)),
            (["a", "f"], ["d/", "e/"]),
            f"keys and groups by a delimiter, {max_keys} entries a page",
        )


@CHECKS.add(
    "list.other-delimiter",
    "A delimiter that is not `/` groups keys as well.",
    "list_objects(delimiter=...) is of use with `/` only.",
    needs=["list.delimiter"],
)
def _other_delimiter(site: Site) -> None:
    folder = _put_all(site, ("a", "d-1", "d-2"))
    page = next(site.client.list_objects(site.bucket, folder, "-"))
    groups = [group[len(folder) :] for group in page.common_prefixes]
    equal(groups, ["d-"], "the groups by the delimiter '-'")

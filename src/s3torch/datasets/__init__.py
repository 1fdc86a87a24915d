"""Datasets over the objects of S3: by index, and as a stream."""

from s3torch.datasets.filters import Filter
from s3torch.datasets.iterable import S3IterableDataset
from s3torch.datasets.loader import S3BatchSampler, S3DataLoader
from s3torch.datasets.manifest import Manifest, ManifestFormat
from s3torch.datasets.map import S3MapDataset
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.options import DatasetOptions, MapOptions, StreamOptions
from s3torch.datasets.sampling import LookAheadBatchSampler
from s3torch.datasets.sources import Objects, Prefix, Table

__all__ = [
    "DatasetOptions",
    "Filter",
    "LookAheadBatchSampler",
    "Manifest",
    "ManifestFormat",
    "MapOptions",
    "ObjectTable",
    "Objects",
    "Prefix",
    "S3BatchSampler",
    "S3BucketKeyData",
    "S3DataLoader",
    "S3IterableDataset",
    "S3MapDataset",
    "StreamOptions",
    "Table",
]

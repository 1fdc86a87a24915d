"""Datasets over the objects of S3: by index, and as a stream."""

from s3torch.datasets.bad_samples import SKIP, Skip
from s3torch.datasets.batch_sampler import S3BatchSampler
from s3torch.datasets.filters import Filter
from s3torch.datasets.grouping import by_stem
from s3torch.datasets.iterable import S3IterableDataset
from s3torch.datasets.labels import by_column, by_folder
from s3torch.datasets.loader import S3DataLoader
from s3torch.datasets.manifest import Manifest, ManifestFormat
from s3torch.datasets.map import S3MapDataset
from s3torch.datasets.members import SampleReaders
from s3torch.datasets.mixture import S3Mixture
from s3torch.datasets.objects import ObjectTable, S3BucketKeyData
from s3torch.datasets.options import DatasetOptions, MapOptions, StreamOptions
from s3torch.datasets.sampling import LookAheadBatchSampler
from s3torch.datasets.sources import Objects, Prefix, Table

__all__ = [
    "SKIP",
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
    "S3Mixture",
    "SampleReaders",
    "Skip",
    "StreamOptions",
    "Table",
    "by_column",
    "by_folder",
    "by_stem",
]

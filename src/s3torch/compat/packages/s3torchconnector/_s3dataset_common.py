"""What datasets have in common."""

from s3torch.compat.datasets import get_objects_from_prefix, get_objects_from_uris
from s3torch.datasets.base import identity
from s3torch.uri import parse_s3_uri

__all__ = ["get_objects_from_prefix", "get_objects_from_uris", "identity", "parse_s3_uri"]

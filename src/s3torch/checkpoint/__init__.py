"""Checkpoints in S3."""

from s3torch.checkpoint.file import S3Checkpoint
from s3torch.checkpoint.pointer import Pointer, read_pointer, set_pointer
from s3torch.checkpoint.series import clean, keep_last, latest, mark_complete
from s3torch.checkpoint.uploads import UploadEstimate, UploadStats

__all__ = [
    "Pointer",
    "S3Checkpoint",
    "UploadEstimate",
    "UploadStats",
    "clean",
    "keep_last",
    "latest",
    "mark_complete",
    "read_pointer",
    "set_pointer",
]

"""The safetensors format: files of tensors in S3."""

from s3torch.checkpoint.safetensors.load import SafeOpen, SafeSlice, safe_open
from s3torch.checkpoint.safetensors.load_file import load_file
from s3torch.checkpoint.safetensors.save import estimate_file, save_file
from s3torch.checkpoint.safetensors.save_sharded import estimate_sharded, save_sharded

__all__ = [
    "SafeOpen",
    "SafeSlice",
    "estimate_file",
    "estimate_sharded",
    "load_file",
    "safe_open",
    "save_file",
    "save_sharded",
]

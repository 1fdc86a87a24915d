"""Safetensors files in S3: ``load_file``, ``save_file`` and ``safe_open``, as the safetensors package has for files.

``save_sharded`` saves what is spread over ranks.
"""

from s3torch.checkpoint.safetensors import (
    SafeOpen,
    SafeSlice,
    estimate_file,
    estimate_sharded,
    load_file,
    safe_open,
    save_file,
    save_sharded,
)

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

"""Safetensors files in S3: ``load_file``, ``save_file`` and ``safe_open``, as the safetensors package has for files."""

from s3torch.checkpoint.safetensors import SafeOpen, SafeSlice, load_file, safe_open, save_file

__all__ = ["SafeOpen", "SafeSlice", "load_file", "safe_open", "save_file"]

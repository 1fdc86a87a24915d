"""The storage of PyTorch's ``torch_checkpointing`` in S3 (``pip install 's3torch[torch-checkpointing]'``)."""

from s3torch.checkpoint.torch_checkpointing import S3Storage, S3StorageConfig, clean, estimate, native_fill

__all__ = ["S3Storage", "S3StorageConfig", "clean", "estimate", "native_fill"]

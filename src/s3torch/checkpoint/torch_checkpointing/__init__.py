"""The storage of PyTorch's ``torch_checkpointing`` in S3; ``s3torch.torch_checkpointing`` is its public name."""

from s3torch.checkpoint.torch_checkpointing.commit import clean
from s3torch.checkpoint.torch_checkpointing.config import S3StorageConfig
from s3torch.checkpoint.torch_checkpointing.estimate import estimate
from s3torch.checkpoint.torch_checkpointing.storage import S3Storage, native_fill

__all__ = ["S3Storage", "S3StorageConfig", "clean", "estimate", "native_fill"]

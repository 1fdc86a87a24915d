"""The reader of distributed checkpoints."""

from s3torch.compat.readers import DEFAULT_MAX_GAP_SIZE, DCPOptimizedS3Reader, ItemRange, RangeGroup

__all__ = ["DEFAULT_MAX_GAP_SIZE", "DCPOptimizedS3Reader", "ItemRange", "RangeGroup"]

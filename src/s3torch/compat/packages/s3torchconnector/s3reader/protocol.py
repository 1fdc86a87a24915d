"""What a constructor is."""

from s3torch.compat.readers import DCPS3ReaderConstructorProtocol, GetStreamCallable, S3ReaderConstructorProtocol

__all__ = ["DCPS3ReaderConstructorProtocol", "GetStreamCallable", "S3ReaderConstructorProtocol"]

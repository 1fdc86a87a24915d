"""The version of s3torchconnector whose programs run here."""

__all__ = ["__version__"]

__version__ = "1.5.0"

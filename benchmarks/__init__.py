"""Measures s3torch beside other clients, by ``python -m benchmarks``. Nothing of s3torch imports it."""

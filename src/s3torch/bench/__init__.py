"""``s3torch bench``: measures s3torch beside other clients. Nothing else of s3torch imports it."""

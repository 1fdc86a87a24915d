"""Programs written for s3torchconnector: they say nothing of s3torch, and the tests run them without a change."""

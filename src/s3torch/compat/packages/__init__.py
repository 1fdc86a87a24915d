"""The packages that stand for those of s3torchconnector: this folder is what ``install`` puts on ``sys.path``."""

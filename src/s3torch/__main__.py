"""``python -m s3torch`` is the ``s3torch`` command."""

from s3torch.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m s3torch.compat script.py args...``: runs a program of s3torchconnector on s3torch."""

from s3torch.compat.running import main

__all__: list[str] = []

if __name__ == "__main__":
    main()

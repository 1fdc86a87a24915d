"""How long ranks wait for each other; apart from what imports torch.distributed."""

from __future__ import annotations

from s3torch.errors import ArgumentError

__all__ = ["GROUP_TIMEOUT", "check_group_timeout"]

# Seconds that a rank waits for the others at each step. A rank that begins reads headers, or one piece, meanwhile, and
# its own deadlines (S3ClientConfig) are shorter.
GROUP_TIMEOUT = 300.0


def check_group_timeout(seconds: float) -> float:
    """Return how long to wait for other ranks.

    Raises:
        ArgumentError: It is not a positive number.
    """
    given: object = seconds
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not given > 0:
        raise ArgumentError(f"group_timeout={seconds!r} must be more than 0 seconds.")
    return float(seconds)

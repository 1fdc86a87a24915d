"""What all tests share: how much Hypothesis tries."""

from __future__ import annotations

import os

from hypothesis import settings

# "ci" tries the same examples each time, so that a change is never blamed for another one's bug; "dev" tries new ones.
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("dev", max_examples=50, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

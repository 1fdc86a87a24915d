"""A conformance suite for S3 servers: does a server do what s3torch needs, and what follows where it does not?

```python
from s3torch.testing import conformance

report = conformance.run("my-bucket", endpoint="https://s3.example.com")
print(report)
assert report.ok, report.named(conformance.Outcome.FAILED)
```

Or, with progress: ``python -m s3torch.testing.conformance --endpoint https://s3.example.com --bucket my-bucket``.

Each check has a name, a sentence of what it shows, and an outcome: passed; failed, with what was seen; not supported by
the server, with the consequence for users of s3torch; or skipped, where another check that it needs has not passed, or
torch is not installed. `checks` lists them.
"""

from s3torch.testing.conformance.check import Check
from s3torch.testing.conformance.report import Outcome, Report, Result
from s3torch.testing.conformance.running import Progress, checks, run

__all__ = ["Check", "Outcome", "Progress", "Report", "Result", "checks", "run"]

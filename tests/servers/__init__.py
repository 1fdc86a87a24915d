"""Other S3 servers, each in an environment of its own, for the conformance suite: `make conformance SERVER=swift`."""

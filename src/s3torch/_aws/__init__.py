"""What is particular to S3: addresses, credentials, signatures, requests and their errors."""

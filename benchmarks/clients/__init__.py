"""What each client does in each task, one file a client."""

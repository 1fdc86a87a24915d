"""What all clients read from."""

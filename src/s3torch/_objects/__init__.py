"""One object as it is read or written, and the pages of a listing."""

"""HTTP/1.1 transfers into given memory, driven by whoever waits for them."""

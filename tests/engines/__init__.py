"""Training engines that others wrote, and the examples of them."""

"""Tests of the suite itself: on a server that is right, on servers that are wrong on purpose, and on real ones."""

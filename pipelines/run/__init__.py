"""A run on disk, and who is told of it."""

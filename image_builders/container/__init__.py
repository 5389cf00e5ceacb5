"""A container image from an edited manifest and the chunk store."""

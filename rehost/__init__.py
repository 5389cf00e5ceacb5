"""Rehost: a running server becomes an image that is proven to start."""

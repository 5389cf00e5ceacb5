"""Manifests, the chunk store, and the transfer that fills them."""

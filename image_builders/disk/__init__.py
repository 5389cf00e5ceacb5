"""A bootable disk from an edited manifest and the chunk store."""

"""ext4 straight from a files table: no mount, no root, no program of others. docs/ext4.md says what is written."""

from image_builders.disk.ext4.writer import needed_bytes, write_ext4

__all__ = ["needed_bytes", "write_ext4"]

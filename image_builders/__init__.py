"""Images as functions of a manifest."""

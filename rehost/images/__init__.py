"""Images once they are built: their files for whoever downloads them, evidence of their tests, their removal."""

"""Destinations: where images go, and which registry containers go to."""

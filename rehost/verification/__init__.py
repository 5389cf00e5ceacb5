"""Test boots, test runs of containers, and what is checked in them."""

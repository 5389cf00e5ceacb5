"""Prefect tasks, one a stage of a migration: retries, progress, artifacts."""

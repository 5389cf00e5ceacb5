"""Prefect flows: the order of steps and the state of the job, nothing else."""

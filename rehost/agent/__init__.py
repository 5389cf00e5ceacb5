"""The program that runs on the source: standard library of Python 3.6 and later, nothing else."""

"""The command line: it speaks HTTP to the API."""

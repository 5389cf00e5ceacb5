"""The HTTP front end: it validates, asks the catalog, starts flows."""

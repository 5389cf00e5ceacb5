"""The way of the catalog's tables from version to version; `rehost.catalog.upgrade` walks it.

A change of the tables is a new file in versions/: its revision is the next number, in four digits, and SCHEMA_VERSION
in tables.py becomes that number. A test compares what the migrations make with the tables as the program declares them.
"""

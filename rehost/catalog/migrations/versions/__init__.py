"""The migrations, each with the revision that its name says."""

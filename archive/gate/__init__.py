"""Judge a new version against the one that serves."""

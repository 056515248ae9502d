"""Find the documents that a query means."""

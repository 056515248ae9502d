"""Find the documents that are relevant to a query."""

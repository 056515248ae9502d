"""The registry: the archives that may serve, and which of them does."""

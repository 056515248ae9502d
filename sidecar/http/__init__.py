"""The sidecar's HTTP routes."""

"""Offline metrics, and how they are shown."""

"""Tests of ``sidecar``."""

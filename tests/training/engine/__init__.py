"""Tests of ``training/engine``."""

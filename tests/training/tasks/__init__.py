"""Tests of ``training/tasks``."""

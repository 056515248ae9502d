"""Tests of ``training/metrics``."""

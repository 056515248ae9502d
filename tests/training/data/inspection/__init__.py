"""Tests of ``training/data/inspection``."""

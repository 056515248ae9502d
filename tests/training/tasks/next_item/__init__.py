"""Tests of next-item data, baselines, losses and evaluation."""

"""Tests of edge lists and walks."""

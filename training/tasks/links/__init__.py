"""Predict the links of a graph."""

"""Predict the next item of a sequence."""

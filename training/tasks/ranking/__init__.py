"""Predict what happens when an item is shown: clicks, watch time, sales."""

"""Measure speed against the alternatives, and quality against baselines and oracles."""

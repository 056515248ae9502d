"""Measurements: speed beside the alternatives, quality beside the ceilings."""

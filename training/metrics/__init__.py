"""Offline metrics, with the tables and curves that show them."""

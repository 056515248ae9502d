"""The models, one per file, and what they share: layers, text and weights files."""

"""The models, one a file, and what they share: layers, texts, weights files."""

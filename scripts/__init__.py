"""Commands over the trained models: python -m scripts.<name>."""

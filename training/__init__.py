"""Training: read the data, fit one model, measure it, write its artifact folder."""

"""What runs a training loop: one process, or several on Ray."""

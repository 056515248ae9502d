"""Where a training loop runs: in one process, or in several on Ray."""

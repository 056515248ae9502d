"""The kinds of problems; each has its data, its evaluation and a synthetic world."""

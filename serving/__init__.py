"""A running instance: its settings, its processes, its client, and how a version takes over."""

"""Read data: files and databases become checked tables, and those become model inputs."""

"""Reading data: files and databases become checked tables, and these a model's inputs."""

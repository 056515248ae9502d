"""What ships inside every .mar: handlers, the networks they run and what both need.

Imports nothing of the rest of the repository: import-linter and a test see to it.
"""

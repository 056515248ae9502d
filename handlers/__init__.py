"""The code that ships in every .mar: the handlers, their models and what both need.

It imports nothing else from this repository; import-linter and a test check that.
"""

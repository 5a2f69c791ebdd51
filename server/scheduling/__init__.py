"""Runs as operators see them: whose turn it is, which there are, how one goes on without a terminal, and how one is ended."""

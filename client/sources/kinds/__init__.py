"""Kinds of source: each turns rows into its part of a platform's tables."""

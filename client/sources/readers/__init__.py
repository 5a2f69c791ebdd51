"""Readers of files and databases: each gives portions of rows whose cells are text."""

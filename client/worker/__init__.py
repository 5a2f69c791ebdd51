"""The process that has the rows: it answers a fixed set of requests."""

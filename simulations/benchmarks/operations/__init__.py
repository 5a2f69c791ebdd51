"""What operating takes: memory of each role of a deployment."""

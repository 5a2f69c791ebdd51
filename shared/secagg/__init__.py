"""The secure sum: many platforms add their vectors, and the coordinator learns the sum and nothing else."""

"""Ranking quality on held-out interactions, exact and as it may leave."""

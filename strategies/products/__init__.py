"""Strategies that combine the products B A of platforms' factors, so they need each platform's factors in clear."""

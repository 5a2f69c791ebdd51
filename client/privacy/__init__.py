"""Mechanisms, noise, charges, and the one check of everything that leaves."""

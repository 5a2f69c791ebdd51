"""Attacks on runs of one's own: canary users, half of them in, and what their scores prove of epsilon."""

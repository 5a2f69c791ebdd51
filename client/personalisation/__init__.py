"""Residual adapters that stay on the platform."""

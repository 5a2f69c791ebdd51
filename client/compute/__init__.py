"""Devices, batches and the cache of frozen features."""

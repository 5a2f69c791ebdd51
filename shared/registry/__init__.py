"""A published model: its manifest, whose signature it has, and whether a folder still holds what the manifest says."""

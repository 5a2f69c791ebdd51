"""The shared model: backbone, encoder, the adapter and its factors."""

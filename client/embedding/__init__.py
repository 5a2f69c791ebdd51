"""Vectors of pictures and sounds by a local encoder, as a file that a source of vectors reads."""

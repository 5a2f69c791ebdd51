"""A processor's own kernels, behind one interface; see the README beside this file."""

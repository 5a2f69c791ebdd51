"""`fedfuse poc`: a coordinator and three platforms as real processes on this machine."""

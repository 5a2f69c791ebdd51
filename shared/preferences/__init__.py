"""Which items are liked together, as platforms release it in common: the vector that is summed, and what is made of the sum."""

"""Lists for people: whom they are for, which items they may hold, in which order, and why."""

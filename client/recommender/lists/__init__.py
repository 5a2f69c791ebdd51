"""Lists for people: whom they are for, which items may stand in them and in which order, and why."""

"""What the pages for people have in common: colours, letters, and what a page may load."""

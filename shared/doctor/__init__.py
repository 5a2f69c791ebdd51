"""What `fedfuse doctor` finds on any machine, and the form of what it finds."""

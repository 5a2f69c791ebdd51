"""What each source of a platform adds, and which fusion operator joins them best."""

"""Who may do what at the coordinator, and the log of who did."""

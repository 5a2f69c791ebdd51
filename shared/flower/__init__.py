"""What of Flower's own processes is done otherwise."""

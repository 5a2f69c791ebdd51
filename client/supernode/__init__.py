"""The process that Flower runs on a platform, its cage, and its way to the coordinator's gate."""

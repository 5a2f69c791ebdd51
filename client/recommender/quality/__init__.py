"""What models are worth to a platform's own users: metrics, segments and intervals; exact, so nothing of it leaves."""

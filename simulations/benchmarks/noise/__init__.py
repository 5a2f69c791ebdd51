"""What the noise of releases costs."""

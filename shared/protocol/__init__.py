"""What coordinator and platforms say to one another, and with which keys."""

"""One run on one platform: its plan, its rounds, its answers, and what it remembers between messages."""

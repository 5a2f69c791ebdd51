"""Privacy arithmetic: what is released, what it costs, and how much noise a budget asks for. Nothing here sees data."""

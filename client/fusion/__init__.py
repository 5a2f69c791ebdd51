"""How source vectors join the text: one operator a module."""

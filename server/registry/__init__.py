"""Published models: signed, stored, described, pulled."""

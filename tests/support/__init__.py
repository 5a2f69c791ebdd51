"""What tests of several folders use: no test stands here."""

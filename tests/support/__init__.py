"""What tests of several folders use: there is no test here."""

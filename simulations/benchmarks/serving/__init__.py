"""What a served recommendation takes: a catalogue of 100,000 items, a load generator on loopback."""

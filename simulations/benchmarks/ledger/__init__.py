"""What it takes to audit a long ledger."""

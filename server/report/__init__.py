"""The report of a run, a platform or a ledger: one page for people, and the same facts for machines."""

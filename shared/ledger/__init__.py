"""The ledger's format, and how anyone audits one."""

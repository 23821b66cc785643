"""What graftflow takes from others: the lock files, their licences, the audit of both, and bills of material."""

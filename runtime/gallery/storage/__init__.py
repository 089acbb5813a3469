"""The rows of a gallery in SQLite: schema, transactions, locks, erasure."""

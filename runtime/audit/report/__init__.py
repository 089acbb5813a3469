"""The report of an audit: HTML, PDF, JSON and CSV, replaced together."""

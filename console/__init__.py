"""What every command line of this package shares: terminal output and exit codes. Used by `commands`, `export` and `models`."""

"""What every room uses of the system: processors, atomic writes, file locks, processes, TLS, multipart, CSV and TOML files."""

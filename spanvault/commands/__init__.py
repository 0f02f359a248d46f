"""What `spanvault` can be asked, one module a command or two; cli.py puts them together."""

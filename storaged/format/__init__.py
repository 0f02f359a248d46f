"""The bytes of FORMAT.md: objects, call records, key files, ledgers. Pure; no files."""

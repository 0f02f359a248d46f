"""Sealed recordings on local disk: ingest, keys, index, access log, requests."""

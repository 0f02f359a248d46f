"""What may be asked, answered, and written into the access log."""

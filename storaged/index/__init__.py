"""What is known of each call, and found: tables in one LMDB environment."""

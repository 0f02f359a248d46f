"""What each daemon lives by: settings, journal, systemd, small files, disks that fail."""

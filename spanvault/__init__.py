"""What makes the three daemons one appliance: wire, config, journal, lifecycle, sound, command."""

__version__ = "0.1.0"

"""Which calls there are, and which streams are whose."""

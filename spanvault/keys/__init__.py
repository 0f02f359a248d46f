"""Key files: made, protected, shared out on paper, found."""

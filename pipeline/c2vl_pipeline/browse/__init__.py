"""Pages that show what a work folder holds."""

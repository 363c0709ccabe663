"""What runs and evaluations leave on disk, and how people look at it."""

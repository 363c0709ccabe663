"""Files that runs and evaluations write, and how people look at them."""

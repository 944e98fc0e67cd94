"""Functions in Hyperlight micro virtual machines; ``backend`` is the way in."""

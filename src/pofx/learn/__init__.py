"""From data to parameters: one gradient loop, full-batch families, checkpoints, search."""

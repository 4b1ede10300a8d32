"""Speed as ratios: two ways to compute the same outputs, timed in turns in one process. Void if the outputs differ."""

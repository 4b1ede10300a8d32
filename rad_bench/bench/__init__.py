"""Speed as ratios: two ways to the same outputs, timed in turns in one process; void unless the outputs agree."""

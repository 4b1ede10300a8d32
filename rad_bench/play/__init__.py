"""A trained world to walk in: `rad-bench play`."""

"""Memory blocks, one file each, named in YAML by file. `memory.py` is their contract, `fast/` has their fast paths."""

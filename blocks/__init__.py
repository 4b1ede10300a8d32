"""Memory blocks, one file each. A file is found by being here; `memory.py` holds their contract."""

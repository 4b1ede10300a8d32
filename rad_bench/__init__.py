"""rad-bench: which memory should a video world model carry, and what does it cost?"""

__version__ = "0.1.0"

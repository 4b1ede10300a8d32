"""`python -m rad_bench`, the same as `rad-bench`."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, whose `yaml.py` or `random.py` would be imported in place of the real one

from rad_bench.cli import main

if __name__ == "__main__":
    main()

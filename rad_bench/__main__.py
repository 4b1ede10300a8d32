"""`python -m rad_bench`, the same as `rad-bench`."""

from rad_bench.cli import main

if __name__ == "__main__":
    main()

"""`python -m accel_flowers`: the same program as the `accel-flowers` command."""

from accel_flowers.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m accel_flowers`: the same program as the `accel-flowers` command."""

from accel_flowers.core.environment import libraries_first

libraries_first()  # before any library is imported

from accel_flowers.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()

"""The command line; for programs that run it within their own process, `main(words)`."""

from accel_flowers.cli.main import main

__all__ = ["main"]

"""`hyperjax sample`, from the repository: see `python sample.py --help`."""

from hyperjax import commands

if __name__ == "__main__":
    commands.sample()

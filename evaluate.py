"""`hyperjax evaluate`, from the repository: see `python evaluate.py --help`."""

from hyperjax import commands

if __name__ == "__main__":
    commands.evaluate()

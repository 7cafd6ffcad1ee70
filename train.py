"""`hyperjax train`, from the repository: see `python train.py --help`."""

from hyperjax import commands

if __name__ == "__main__":
    commands.train()

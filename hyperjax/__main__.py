"""`python -m hyperjax train|sample|evaluate|import|export|verify`."""

import sys

from hyperjax import commands

if __name__ == "__main__":
    sys.argv[0] = "hyperjax"
    commands.main()

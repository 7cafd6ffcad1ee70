"""Print the oldest release of each library that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        name, bound = re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", dependency).groups()
        print(f"{name}=={bound}")

"""Write environment.yml (conda, Binder) from pyproject.toml; tests/test_environment.py fails where the two differ."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("book", "dev", "fast", "weights")
HEAD = """# For conda and Binder. Written from pyproject.toml by tools/write_environment_yml.py: change that, run it.
# `make` does not need it: it makes .venv from requirements.lock, which also pins versions and hashes.
name: wbcrepro
channels: [conda-forge]
dependencies:
"""


def main() -> None:
    """Write the file beside pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f'  - "python{project["requires-python"]}"', "  - pip", "  - pip:", '      - "-e ."']
    optional = project["optional-dependencies"]
    for title, texts in [("core", project["dependencies"]), *((extra, optional[extra]) for extra in EXTRAS)]:
        lines += [f"      # {title}", *(f'      - "{text}"' for text in texts)]
    (ROOT / "environment.yml").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Papers as data: one YAML file each, read by the planner, the report and the notebooks."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml

from wbcrepro.errors import UsageError


def paper_names() -> tuple[str, ...]:
    """Short names of the papers that can be run, in alphabetical order."""
    files = resources.files(__name__).iterdir()
    names = (f.name.removesuffix(".yml") for f in files if f.name.endswith(".yml"))
    return tuple(sorted(name for name in names if "." not in name))


@cache
def load_paper(name: str) -> dict:
    """The parsed YAML of a paper; ``UsageError`` names the papers that exist. Treat the result as read-only."""
    if name not in paper_names():
        raise UsageError(f"there is no paper named {name!r}; the papers are: {', '.join(paper_names())}")
    return yaml.safe_load((resources.files(__name__) / f"{name}.yml").read_text(encoding="utf-8"))


def profile_of(paper: dict, name: str) -> dict:
    """One profile of a paper; ``UsageError`` names those that exist."""
    if name not in paper["profiles"]:
        known = ", ".join(paper["profiles"])
        raise UsageError(f"the paper {paper['name']} has no profile named {name!r}; its profiles are: {known}")
    return paper["profiles"][name]

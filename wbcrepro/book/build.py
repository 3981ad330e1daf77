"""Stage prose, executed notebooks and configuration in ``build/book-src`` and build the pages in ``build/book/html``.

Jupyter Book turns ``_config.yml`` into a Sphinx configuration; Sphinx runs with warnings as errors, ``nitpicky``, and
never executes anything. Staging touches a file only when its bytes change, so Sphinx rebuilds only what did.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

import wbcrepro
from wbcrepro.book.layout import Layout
from wbcrepro.errors import WbcreproError

NOT_NEEDED = {"sphinx_thebe", "sphinx_comments", "sphinx.ext.intersphinx"}
"""Extensions of Jupyter Book that fetch from other hosts, or write addresses that could be fetched into every page."""

NOT_EXECUTED = """# {title}

```{{admonition}} Not executed
:class: warning
This chapter has no executed notebook in this build. Make it with `wbcrepro book` (all chapters) or
`wbcrepro book --only {name}`.
```
"""


class Staging:
    """Writes files into the staged folder and remembers them; what is left over from earlier builds is removed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.kept: set[Path] = set()

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file below the folder unless it already has this content."""
        content = content.encode() if isinstance(content, str) else content
        path = self.folder / name
        self.kept.add(path)
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def finish(self) -> None:
        """Remove files that this staging did not write."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_file() and path not in self.kept:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def toc_files(toc: dict) -> list[str]:
    """Every document that a table of contents names, in order."""
    found = [toc[key] for key in ("root", "file") if key in toc]
    for key in ("parts", "chapters", "sections"):
        for entry in toc.get(key, []):
            found += toc_files(entry)
    return found


def sphinx_config(config: dict) -> dict:
    """Jupyter Book's Sphinx configuration for a ``_config.yml``, with the repository's address put in."""
    from jupyter_book.config import get_final_config

    config = copy.deepcopy(config)
    theme = config["sphinx"]["config"].pop("html_theme_options", {})
    config |= {"repository": {"url": wbcrepro.REPOSITORY, "path_to_book": "", **config.get("repository", {})}}
    final, _ = get_final_config(user_yaml=config, cli_config={"latex_individualpages": False}, raise_on_invalid=True)
    # Jupyter Book puts buttons and links here; what `_config.yml` says of the theme under `sphinx` would replace them.
    final["html_theme_options"] |= theme
    final["extensions"] = [name for name in final["extensions"] if name not in NOT_NEEDED]
    final |= {"external_toc_path": "_toc.yml", "nb_execution_mode": "off", "nb_ipywidgets_js": {}, "nitpicky": True}
    return final


def _conf_py(config: dict) -> str:
    return "".join(f"{key} = {config[key]!r}\n" for key in sorted(config))


def fill(text: str, generated: dict[str, str]) -> str:
    """Replace the lines ``% generated: NAME``; an unknown name is an error."""

    def replacement(match: re.Match) -> str:
        if match["name"] not in generated:
            raise WbcreproError(f"a page asks for generated text {match['name']!r}; there is {', '.join(generated)}")
        return generated[match["name"]].strip()

    return re.sub(r"^% generated: (?P<name>\S+)$", replacement, text, flags=re.M)


def stage(layout: Layout, generated: dict[str, str]) -> list[str]:
    """Fill ``build/book-src`` and return the chapters that have no executed notebook.

    ``generated`` maps the name in a prose line ``% generated: NAME`` to the Markdown that takes its place.
    """
    staging, root = Staging(layout.staged), layout.root
    toc_text = (root / "_toc.yml").read_text(encoding="utf-8")
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    staging.write("conf.py", _conf_py(sphinx_config(config)))
    staging.write("_toc.yml", toc_text)
    for path in sorted((root / "book").rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            staging.write(name, fill(path.read_text("utf-8"), generated) if path.suffix == ".md" else path.read_bytes())
    absent = []
    for document in toc_files(yaml.safe_load(toc_text)):
        if not document.startswith("notebooks/"):
            continue
        name = document.removeprefix("notebooks/")
        executed = layout.executed / f"{name}.ipynb"
        if executed.is_file() and executed.with_suffix(".json").is_file():
            staging.write(f"{document}.ipynb", executed.read_bytes())
        else:
            absent.append(name)
            staging.write(f"{document}.md", NOT_EXECUTED.format(title=name.replace("_", " ").capitalize(), name=name))
    staging.finish()
    return absent


def _copy_page_files(layout: Layout) -> None:
    """Bring the notebooks' downloads to ``_static/pages/<notebook>/``."""
    source, target = layout.executed / "files", layout.html / "_static" / "pages"
    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, target)


def build(layout: Layout) -> Path:
    """Run Sphinx over the staged book; any warning is an error. Returns the page to open."""
    root_document = yaml.safe_load((layout.staged / "_toc.yml").read_text(encoding="utf-8"))["root"]
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-n", "--keep-going", "-q"]
    command += ["-d", str(layout.doctrees), str(layout.staged), str(layout.html)]
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).replace(f"{layout.staged}/", "").strip()
        raise WbcreproError(f"the book was not built; Sphinx said (warnings are errors):\n{said}")
    _copy_page_files(layout)
    page = f"{root_document}.html"
    (layout.html / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>wbcrepro</title>\n'
        f'<meta http-equiv="refresh" content="0; url={page}"></head>'
        f'<body><a href="{page}">Start here</a></body></html>\n',
        encoding="utf-8",
    )
    (layout.html / ".nojekyll").touch()
    return layout.html / "index.html"

"""Executing notebooks and building the book."""

import dataclasses
import json
import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from book_fixture import BUILT, CELL, NOTEBOOK, ROOT, inputs_of, make_root, small_book

pytest.importorskip("papermill")
pytest.importorskip("jupyter_book")

from wbcrepro import cli
from wbcrepro.book import clean, keys
from wbcrepro.book.build import build, fill, sphinx_config, stage, toc_files
from wbcrepro.book.execute import FORBID, execute_due, jobs
from wbcrepro.book.generated import generated
from wbcrepro.book.layout import declared_parameters
from wbcrepro.errors import UsageError, WbcreproError

TRIVIAL = '# %% [markdown]\n# # A chapter\n\n# %%\nprint("fine")\n'


@pytest.fixture(scope="module")
def book():
    return small_book()


@pytest.fixture
def copy_of(book, tmp_path):
    """The small book somewhere else, to be changed."""

    def ignore(folder, names):
        return {"html", "doctrees"} & set(names)

    return dataclasses.replace(book, root=shutil.copytree(book.root, tmp_path / "copy", ignore=ignore))


def folders_of_pages(book) -> list[Path]:
    """The small book's pages, and those of the whole book where one was built."""
    return [book.html] + ([Path(BUILT).resolve()] if BUILT else [])


def executed(layout, name="stain"):
    return nbformat.read(layout.executed / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return "\n".join(str(output) for cell in notebook.cells for output in cell.get("outputs", []))


def test_page_shows_what_the_store_holds_and_offers_its_csv(book):
    page = (book.html / "notebooks" / "stain.html").read_text(encoding="utf-8")
    assert "tiny None 0.625 None 0" in page
    href = re.search(r'href="([^"]+table\.csv)"', page)[1]
    csv = (book.html / "notebooks" / href).resolve()
    assert csv.read_text(encoding="utf-8") == "method,value,.\n"
    assert (book.html / "index.html").read_text(encoding="utf-8").count("book/intro.html") == 2


def test_page_shows_the_parameters_that_it_ran_with_and_hides_papermills_cell(book):
    notebook = executed(book)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert 'PROFILE = "tiny"  # tiny, demo, mini, paper' in cell.source and 'STORE = "runs"' in cell.source
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == [1, 2, 3, 4]
    assert "papermill" not in (book.executed / "stain.ipynb").read_text(encoding="utf-8")


def test_no_page_holds_a_traceback_or_a_path_of_this_machine(book):
    texts = {path: path.read_text(encoding="utf-8") for path in book.executed.glob("*.ipynb")}
    for html in folders_of_pages(book):
        pages = [*html.rglob("*.html"), *(html / "_static" / "pages").rglob("*.csv")]
        assert len(pages) > 12
        texts |= {path: path.read_text(encoding="utf-8") for path in pages}
    machine = (str(book.root), str(ROOT), f"{Path.home()}/", "ipykernel_")
    for path, text in texts.items():
        for unwanted in ("Traceback (most recent call last)", *machine):
            assert unwanted not in text, f"{path} holds {unwanted}"


def test_stderr_goes_to_the_log_and_not_to_the_page(book):
    assert "to stderr" not in outputs(executed(book))
    log = (book.executed / "stain.log").read_text(encoding="utf-8")
    assert "to stderr" in log and "a warning that names a file" in log


def test_no_page_loads_anything_from_another_host(book):
    elements = r"<(?:script|img|iframe|source|video|audio|link)\b[^>]*\b(?:src|href)"
    loading = re.compile(elements + r"=[\"']?(?:https?:)?//[^\"' >]+|@import\s+url\(['\"]?(?:https?:)?//", re.I)
    for html in folders_of_pages(book):
        pages = list(html.rglob("*.html"))
        found = {page.name: loading.findall(page.read_text(encoding="utf-8")) for page in pages}
        assert len(pages) > 12 and not any(found.values()), found
        styles = [path for path in html.rglob("*.css") if re.search(r"url\(['\"]?https?://", path.read_text("utf-8"))]
        assert not styles


def test_execution_elsewhere_gives_the_same_bytes(book, tmp_path):
    other = make_root(tmp_path / "a folder with another name", {"stain": NOTEBOOK})
    execute_due(jobs(other, inputs_of(other)))
    for name in ("stain.ipynb", "files/stain/table.csv"):
        assert (other.executed / name).read_bytes() == (book.executed / name).read_bytes()


def test_unchanged_notebook_is_not_executed_and_the_second_build_is_quick(book, monkeypatch):
    monkeypatch.setenv(FORBID, "1")
    started = time.monotonic()
    assert execute_due(jobs(book, inputs_of(book))) == []
    stage(book, generated(book, book.root / "runs"))
    build(book)
    assert time.monotonic() - started < 60


def change_source(layout):
    path = layout.root / "notebooks" / "stain.py"
    path.write_text(path.read_text() + "\n# %%\n1 + 1\n")


def change_read_cell(layout):
    (layout.root / "runs" / "cells" / CELL / "metrics.json").write_text('{"macro_f1": 0.7}')


def fill_hole(layout):
    folder = layout.root / "runs" / "cells" / "train-ffffffffffff"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")


def add_cell_that_a_listing_would_find(layout):
    folder = layout.root / "runs" / "cells" / "head-aaaaaaaaaaaa"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")


def add_unrelated_cell(layout):
    folder = layout.root / "runs" / "cells" / "features-aaaaaaaaaaaa"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")


def add_result(layout):
    (layout.root / "results" / "table.csv").write_text("1\n")


def damage_output(layout):
    (layout.executed / "stain.ipynb").write_text("{}")


def remove_record(layout):
    (layout.executed / "stain.json").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (change_source, ["source"]),
        (change_read_cell, ["cells"]),
        (fill_hole, ["cells"]),
        (add_cell_that_a_listing_would_find, ["cells"]),
        (add_unrelated_cell, []),
        (add_result, ["results"]),
        (damage_output, ["output"]),
        (remove_record, ["first time"]),
    ],
)
def test_notebook_is_due_exactly_when_something_that_it_depends_on_changed(copy_of, monkeypatch, change, why):
    (job,) = jobs(copy_of, inputs_of(copy_of))
    assert job.due() == []
    change(copy_of)
    assert job.due() == why
    monkeypatch.setenv(FORBID, "1")
    if why:
        with pytest.raises(WbcreproError, match=rf"stain \({', '.join(why)}\)"):
            execute_due([job])
    else:
        assert execute_due([job]) == []


def test_notebook_is_due_when_parameters_package_or_libraries_change(copy_of, monkeypatch):
    inputs = inputs_of(copy_of)
    assert jobs(copy_of, dataclasses.replace(inputs, profile="demo"))[0].due() == ["parameters"]
    assert jobs(copy_of, dataclasses.replace(inputs, dataset="folder:x"))[0].due() == []  # it does not declare DATASET
    monkeypatch.setattr(keys, "package_digest", lambda: "another")
    monkeypatch.setattr(keys, "library_digest", lambda: "another")
    assert jobs(copy_of, inputs)[0].due() == ["package", "libraries"]


def test_notebook_is_due_when_an_image_below_the_data_root_changes(tmp_path):
    image = tmp_path / "acevedo20" / "basophil" / "1.jpg"
    image.parent.mkdir(parents=True)
    (tmp_path / "unrelated").mkdir()
    seen = []
    for content in (b"one", b"another", b"the third"):
        image.write_bytes(content)
        (tmp_path / "unrelated" / "file").write_bytes(content)
        os.utime(image, (0, 0) if content == b"one" else (9, 9))
        seen.append(keys.data_digest.__wrapped__(tmp_path))
    (tmp_path / "unrelated" / "file").write_bytes(b"of no dataset")
    assert len(set(seen)) == 3 and keys.data_digest.__wrapped__(tmp_path) == seen[-1]
    assert keys.data_digest.__wrapped__(None) == keys.data_digest.__wrapped__(tmp_path / "absent")


def test_broken_notebook_makes_the_build_fail_with_its_name_cell_and_error(tmp_path, monkeypatch, capsys):
    broken = TRIVIAL + '\n# %%\n# the broken cell\nraise ValueError("on purpose")\n'
    layout = make_root(tmp_path / "root", {"decoupled": broken, "stain": TRIVIAL})
    monkeypatch.chdir(layout.root)
    assert cli.main(["book", "--profile", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "decoupled.py failed in cell 2 (# the broken cell): ValueError: on purpose" in said
    assert not layout.html.exists(), "pages were built although a notebook failed"
    assert (layout.executed / "stain.ipynb").is_file() and not (layout.executed / "decoupled.ipynb").exists()
    # mended, it is executed, and only it
    (layout.root / "notebooks" / "decoupled.py").write_text(TRIVIAL)
    assert [job.name for job in jobs(layout, inputs_of(layout)) if job.due()] == ["decoupled"]


def test_printed_traceback_counts_as_a_failure():
    cell = nbformat.v4.new_code_cell("print(traceback)")
    text = "Traceback (most recent call last):\n  ...\nKeyError: 1\n"
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    index, source, words = clean.first_error(nbformat.v4.new_notebook(cells=[cell]))
    assert (index, source) == (0, "print(traceback)") and words.endswith("KeyError: 1")


def test_warning_of_sphinx_is_an_error(book, tmp_path):
    layout = make_root(tmp_path / "root", {})
    path = layout.root / "book" / "intro.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nSee [nowhere](no_such_page.md).\n", encoding="utf-8")
    stage(layout, generated(layout, layout.root / "runs"))
    with pytest.raises(WbcreproError, match="no_such_page"):
        build(layout)


def test_staging_leaves_unchanged_files_alone_and_removes_what_is_gone(copy_of):
    stage(copy_of, generated(copy_of, copy_of.root / "runs"))
    before = {path: path.stat().st_mtime_ns for path in copy_of.staged.rglob("*.md")}
    (copy_of.root / "book" / "glossary.md").unlink()
    stage(copy_of, generated(copy_of, copy_of.root / "runs"))
    after = {path: path.stat().st_mtime_ns for path in copy_of.staged.rglob("*.md")}
    assert set(before) - set(after) == {copy_of.staged / "book" / "glossary.md"}
    assert all(before[path] == time_ for path, time_ in after.items())


def test_unknown_generated_text_and_unknown_notebook_are_named(book):
    with pytest.raises(WbcreproError, match="no-such-thing"):
        fill("% generated: no-such-thing\n", {"clone": ""})
    with pytest.raises(UsageError, match="there are stain"):
        jobs(book, inputs_of(book), only="no_such_notebook")


def test_status_page_tells_hardware_time_and_versions(book):
    page = (book.html / "book" / "status.html").read_text(encoding="utf-8")
    record = json.loads((book.executed / "stain.json").read_text(encoding="utf-8"))
    assert record["reads"] == ["head-*", CELL, "train-ffffffffffff"]
    for words in (
        record["hardware"],
        record["versions"]["torch"],
        "a test&#39;s computer",
        "1.0 min",
        "1 of the cells",
    ):
        assert words in page or words.replace("&#39;", "’") in page or words.replace("&#39;", "'") in page, words


@pytest.mark.parametrize(
    ("page", "names"), [("status", ("status-pages", "status-cells", "status-versions")), ("datasets", ("datasets",))]
)
def test_generated_tables_offer_their_csv_and_say_what_they_are_made_from(book, page, names):
    text = (book.html / "book" / f"{page}.html").read_text(encoding="utf-8")
    for name in names:
        assert f'href="../_static/pages/generated/{name}.csv"' in text
        rows = (book.html / "_static" / "pages" / "generated" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) > 1 and "](" not in "".join(rows) and "`" not in "".join(rows)
    assert text.count("made from ") >= len(names)


def test_datasets_page_lists_the_whole_catalogue(book):
    from wbcrepro.data.catalog import datasets

    page = (book.html / "book" / "datasets.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in datasets())


def test_weights_and_accumulation_reach_the_notebooks_that_take_them(copy_of, monkeypatch, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"some weights")
    (copy_of.root / "notebooks" / "takes.py").write_text(
        '# %% tags=["parameters"]\nPROFILE = "demo"\nWEIGHTS = None\nACCUMULATE = None\n', encoding="utf-8"
    )
    seen = {}

    def remember(todo, **options):
        seen.update({job.name: job.parameters() for job in todo})
        return []

    monkeypatch.setattr("wbcrepro.book.execute.execute_due", remember)
    monkeypatch.setattr("wbcrepro.book.build.build", lambda layout: layout.html)
    monkeypatch.chdir(copy_of.root)
    arguments = ["--store", "runs", "--weights", str(tmp_path / "w.pth"), "--accumulate", "4"]
    assert cli.main(["book", *arguments]) == 0
    assert seen["takes"] | {"WEIGHTS": "file"} == {"PROFILE": "demo", "WEIGHTS": "file", "ACCUMULATE": 4}
    assert seen["takes"]["WEIGHTS"].startswith("file:") and str(tmp_path) not in str(seen), "a page names no path"
    assert not {"WEIGHTS", "ACCUMULATE"} & set(seen["stain"])


def test_paths_and_addresses_are_rewritten_whatever_the_folder(tmp_path):
    rules = clean.path_rules(tmp_path, tmp_path / "elsewhere" / ".." / "runs", Path("/data sets"), "folder:/mine")
    text = (
        f"folder:/mine {tmp_path}/runs/x {tmp_path} {Path.home()}/y "
        "/data sets/a.jpg <A at 0x7f0011223344> /t/ipykernel_12/34.py:1"
    )
    assert clean.clean_text(text, rules) == "folder:PATH runs/x . ~/y DATA/a.jpg <A at 0x…> cell:1"


def test_page_begins_with_its_title_where_the_source_begins_with_parameters():
    parameters = nbformat.v4.new_code_cell("PROFILE = 1", metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1")]
    cleaned = clean.clean_notebook(nbformat.v4.new_notebook(cells=cells), [])
    assert [cell.source for cell in cleaned.cells] == ["# Title", "PROFILE = 1", "1"]


def test_parameters_are_read_from_the_tagged_cell_only():
    source = (
        '# %%\nOTHER = 1\n\n# %% tags=["parameters", "x"]\nPROFILE = "demo"\nDATA: str | None = None\n\n# %%\nZ = 1\n'
    )
    assert declared_parameters(source) == {"PROFILE", "DATA"}
    assert declared_parameters("# %%\nPROFILE = 1\n") == set()


def test_repository_address_comes_from_one_place(monkeypatch):
    import yaml

    root = Path(__file__).resolve().parents[1]
    for name in ("_config.yml", "_toc.yml"):
        assert "github.com" not in (root / name).read_text(encoding="utf-8")
    for page in (root / "book").glob("*.md"):
        assert "github.com" not in page.read_text(encoding="utf-8"), page
    monkeypatch.setattr("wbcrepro.REPOSITORY", "https://github.com/someone/else")
    final = sphinx_config(yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")))
    assert final["html_theme_options"]["repository_url"] == "https://github.com/someone/else"


def test_published_book_is_checked_page_by_page_before_it_is_uploaded():
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["publish"]["steps"]
    names = ("make reproduce", "STRICT=1", "upload-pages-artifact")
    made, tested, uploaded = (next(n for n, step in enumerate(steps) if name in str(step)) for name in names)
    assert made < tested < uploaded
    checked, upload = steps[tested], steps[uploaded]
    assert checked["env"]["WBCREPRO_BOOK"] == upload["with"]["path"]
    assert all(f"tests/test_{name}.py" in checked["run"] for name in ("browser", "book"))


def test_vendored_mathjax_has_its_licence_and_no_large_file():
    folder = Path(__file__).resolve().parents[1] / "book" / "_static" / "mathjax"
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8") and (folder / "NOTICE").is_file()
    assert max(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_000_000


def test_toc_lists_files_in_order():
    toc = {
        "root": "a",
        "parts": [{"chapters": [{"file": "b", "sections": [{"file": "c"}]}]}],
        "chapters": [{"file": "d"}],
    }
    assert toc_files(toc) == ["a", "b", "c", "d"]


def test_forbidding_works_from_the_command_line(copy_of, monkeypatch, capsys):
    change_source(copy_of)
    monkeypatch.chdir(copy_of.root)
    monkeypatch.setitem(os.environ, FORBID, "1")
    assert cli.main(["book", "--profile", "tiny"]) == 1
    assert "stain (source)" in capsys.readouterr().err

"""From notebooks and prose to a built book: execute (papermill), stage, build (Sphinx by Jupyter Book), pair (Colab).

Three things pass between a notebook that is being executed and this package, all by environment variables that
``wbcrepro.book.execute`` sets. A notebook opened by hand sees none of them.

``WBCREPRO_READ_ONLY=1``
    The notebook only reads the store; ``session.run_missing()`` does nothing.

``WBCREPRO_READS=<file>``
    The store appends one line for each thing that it was asked for, found or not, in any order, repeats allowed: the
    id of a cell (``train-0123456789ab``), or a glob such as ``train-*`` where the answer depended on *which* exist.
    The notebook is executed again when one of those cells (the digest of its ``metrics.json``) or the set that a
    glob matches changes, so a missed line shows as a stale page. Append with one ``open(path, "a")`` per line.

``WBCREPRO_PAGE_FILES=<folder>`` and ``WBCREPRO_PAGE_URL=<relative address>``
    A file for the reader to download (the CSV under a table, the script behind a figure) is written to
    ``WBCREPRO_PAGE_FILES`` (the folder exists) and linked as ``{WBCREPRO_PAGE_URL}/{name}`` from **HTML** output:
    ``<a href="../_static/pages/decoupled_results/table1.csv" download>CSV</a>``. Markdown output will not do: Sphinx
    would look for the target among the sources. The names must be deterministic and so must the bytes. Where
    the variables are absent (a notebook opened by hand) write nothing and show no link.

What a page must not hold: absolute paths, host names, random identifiers (set ``uuid`` of a pandas ``Styler``), times
of day. ``execute`` rewrites the paths that it knows of and the test of byte-identical execution finds the rest.

CSS classes for HTML output (``book/_static/custom.css``): ``wbc-synthetic`` (a ``div``: the banner over synthetic
numbers), ``wbc-table`` (a ``div`` around a ``table``: scrolls sideways on a phone), and inside the table ``wbc-group``
(the header cell over a group of columns: paper / released code / ours), ``wbc-paper``, ``wbc-code`` and ``wbc-ours``
(cells of those groups), ``wbc-best``, ``wbc-second``, ``wbc-hole`` (a missing value), ``wbc-verdict``; ``wbc-source``
(a ``p`` or ``div`` under the table: CSV, cells, command).
"""

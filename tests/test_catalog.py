"""The catalogue is complete and agrees with itself and with the papers' published counts."""

import pytest

from wbcrepro.data import WBCBENCH_CLASSES, catalog
from wbcrepro.data.layouts import READERS
from wbcrepro.errors import UsageError

DATASETS = list(catalog.datasets().values())


def test_every_dataset_of_the_papers_is_there():
    assert {entry.name for entry in DATASETS} == {
        "wbcbench2026", "acevedo20", "matek19", "raabin-wbc", "raabin500", "ldwbc", "zheng18", "lisc", "chula500",
        "int20", "sysu3h",
    }  # fmt: skip
    assert {entry.name for entry in DATASETS if entry.private} == {"int20", "sysu3h"}
    assert catalog.dataset("wbcbench2026").access == "gated"
    assert catalog.dataset("wbcbench2026").licence["redistribution"] == "never"


@pytest.mark.parametrize("entry", DATASETS, ids=lambda entry: entry.name)
def test_entry_is_complete(entry):
    assert entry.title and entry.citation and entry.licence["name"] and entry.access in catalog.ACCESS
    assert entry.mapping in entry.labels and entry.layouts and entry.steps.strip()
    assert all(layout["kind"] in READERS for layout in entry.layouts)
    assert f"some/root/{entry.folder}" in entry.instructions("some/root") and "{" not in entry.instructions("root")
    for name, labels in entry.labels.items():
        assert set(labels.values()) <= set(catalog.mappings()[name].classes), name
        assert not set(labels) & set(entry.unmapped) or name != entry.mapping
    assert (entry.source or "http").startswith("http")
    for item in entry.downloads:
        assert item["url"].startswith("https://") and (item["sha256"] is None) == ("note" in item)


def test_counts_add_up():
    wbc = catalog.dataset("wbcbench2026")
    assert sum(wbc.counts.values()) == wbc.images["labelled"] == 38535
    assert sum(wbc.split_counts.values()) == wbc.images["total"] == 55012
    assert sum(wbc.patients.values()) == 493
    acevedo = catalog.dataset("acevedo20")
    assert sum(acevedo.source_counts.values()) == acevedo.images["total"] == 17092
    assert sum(catalog.dataset("raabin-wbc").split_counts.values()) == 16633
    for name in ("zheng18", "chula500", "raabin500"):
        assert sum(catalog.dataset(name).counts.values()) == catalog.dataset(name).images["total"]


def test_mappings():
    assert catalog.mappings()["wbcbench"].classes == WBCBENCH_CLASSES
    assert len(catalog.mappings()["thirteen"].classes) == 13 and len(catalog.mappings()["five"].classes) == 5
    classes, labels = catalog.dataset("acevedo20").labels_under("wbcbench")
    assert classes == ("BA", "BNE", "EO", "LY", "MMY", "MO", "MY", "PMY", "SNE") and "IG" not in labels
    for name, size in (("acevedo20", 10), ("matek19", 13), ("int20", 13)):
        assert len(catalog.dataset(name).labels_under("thirteen")[0]) == size, name


def test_unknown_names_list_what_there_is():
    with pytest.raises(UsageError, match="acevedo20.*folder:PATH"):
        catalog.dataset("acevedo")

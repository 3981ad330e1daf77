"""Datasets: catalogue, manifests, splits, synthetic smears, degradations and the pixel cache."""

WBCBENCH_CLASSES = ("BA", "BL", "BNE", "EO", "LY", "MMY", "MO", "MY", "PC", "PLY", "PMY", "SNE", "VLY")
"""The 13 classes of WBCBench 2026 in alphabetical order, the order of every 13-vector in this project."""

CLASS_NAMES = {
    "BA": "basophil", "BL": "blast cell", "BNE": "band-form neutrophil", "EO": "eosinophil", "LY": "lymphocyte",
    "MMY": "metamyelocyte", "MO": "monocyte", "MY": "myelocyte", "PC": "plasma cell", "PLY": "prolymphocyte",
    "PMY": "promyelocyte", "SNE": "segmented neutrophil", "VLY": "variant lymphocyte",
}

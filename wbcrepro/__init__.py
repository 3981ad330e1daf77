"""wbcrepro: four papers on white-blood-cell classification, re-run in one book."""

__version__ = "0.1.0"

REPOSITORY = "https://github.com/wbcrepro/wbcrepro"
"""The public address of this repository. Every link and Colab badge is built from it; change it here only."""

"""Rescue of the rarest classes: cells isolated, images restored, a second model asked, the cell itself measured."""

"""Chunks of isolated cells: two writers of one chunk, as after a kill whose workers live on, do not disturb it."""

import os

import numpy as np

from wbcrepro.experiments import kinds_cells


def test_two_writers_of_one_chunk_do_not_take_each_others_file(tmp_path, monkeypatch):
    images = np.full((3, 3, 32, 32), 255, np.uint8)
    chunks = kinds_cells._Segmentation(images, 32, tmp_path)
    save, rivals = np.savez, []

    def save_beside_a_rival(path, **arrays):
        save(path, **arrays)
        if not rivals:  # another process starts and ends the same chunk before this one publishes its own
            rivals.append(os.getpid() + 1)
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: rivals[0])
                chunks[0]

    monkeypatch.setattr(np, "savez", save_beside_a_rival)
    chunks[0]
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.npz"]
    with np.load(tmp_path / "part-00000.npz") as part:
        assert part["status"].tolist() == ["blank"] * 3

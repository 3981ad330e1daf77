"""Predicting files, with a network that only measures brightness: batches, sizes, damaged files, a missing folder."""

import numpy as np
import pytest
import torch
from PIL import Image

from wbcrepro.cli import main
from wbcrepro.data.decode import DecodeError
from wbcrepro.experiments.predict import Predictor, predict_files


class Brightness(torch.nn.Module):
    """Logits (N, 2) that say how bright an image is; remembers how many images it was given at a time."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, images):
        self.given.append(len(images))
        mean = images.float().mean((1, 2, 3)) / 255
        return torch.stack([mean, 1 - mean], 1)


def test_files_are_predicted_in_batches_each_with_its_own_answer(tmp_path):
    levels, paths = [0, 50, 200, 100, 255], []
    for number, level in enumerate(levels):
        size = (20 + number, 30)
        Image.fromarray(np.full((*size, 3), level, np.uint8)).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    paths.insert(2, tmp_path / "broken.png")
    paths[2].write_bytes(paths[0].read_bytes()[:50])
    model = Brightness()
    predictor = Predictor(None, model, ("bright", "dark"), "none", 16, 16, torch.device("cpu"))
    found = dict(predict_files([predictor], paths, batch_size=3))
    assert list(found) == paths and isinstance(found.pop(paths[2]), DecodeError)
    assert model.given == [2 * 8, 3 * 8]
    for level, probabilities in zip(levels, found.values(), strict=True):
        logits = torch.tensor([level / 255, 1 - level / 255])
        np.testing.assert_allclose(probabilities, logits.softmax(0), atol=1e-6)


@pytest.mark.parametrize("output", ["no_such_folder/out.csv", "."])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys, output):
    told = main(["predict", str(tmp_path), "--run", "head-0", "--store", str(tmp_path), "-o", str(tmp_path / output)])
    assert told == 2 and "a folder that exists" in capsys.readouterr().err

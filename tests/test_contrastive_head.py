"""The contrastive head of `rescue` against the released code's values and gradients, and where batches are odd."""

import numpy as np
import pytest
import torch

from wbcrepro.rescue.contrastive_head import ContrastiveHead, ContrastiveHeadLoss


def golden_head(file, dtype) -> ContrastiveHead:
    hidden, dim = file["p_encoder_0_weight"].shape
    projection, latent = file["p_projection_weight"].shape
    classes = len(file["p_classifier_bias"])
    head = ContrastiveHead(dim, classes, hidden=hidden, latent=latent, projection=projection)
    stored = {key: torch.tensor(file["p_" + key.replace(".", "_")]) for key in head.state_dict()}
    head.load_state_dict(stored)
    assert len(stored) == sum(key.startswith("p_") for key in file.files)  # nothing of the golden file is left over
    return head.to(dtype).eval()


def assert_gradient(got: torch.Tensor, expected: np.ndarray):
    assert np.abs(got.double().numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_values_and_gradients(golden, dtype):
    file = golden("contrastive_head")
    head, labels = golden_head(file, dtype), torch.tensor(file["targets"])
    x = torch.tensor(file["embeddings"]).to(dtype).requires_grad_()
    z, logits = head(x)
    z.retain_grad()
    np.testing.assert_allclose(z.detach(), file["proj"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits.detach(), file["logits"], rtol=1e-5, atol=1e-5)
    total, contrast, focal = ContrastiveHeadLoss(len(file["p_classifier_bias"]))(z, logits, labels)
    for got, key in ((total, "total"), (contrast, "supcon"), (focal, "focal")):
        assert got.item() == pytest.approx(float(file[key]), rel=1e-5) and got.dtype == dtype
    assert_gradient(torch.autograd.grad(focal, logits, retain_graph=True)[0], file["focal_grad_logits"])
    assert_gradient(torch.autograd.grad(contrast, z, retain_graph=True)[0], project(file, dtype))
    total.backward()
    assert_gradient(x.grad, file["grad_embeddings"])
    assert_gradient(head.classifier.weight.grad, file["grad_classifier_weight"])
    assert_gradient(head.projection.weight.grad, file["grad_projection_weight"])


def project(file, dtype) -> np.ndarray:
    """The golden gradient on the sphere: our loss scales its rows itself, so it has no part along them."""
    gradient, z = file["supcon_grad_proj"].astype(float), file["proj"].astype(float)
    return gradient - (gradient * z).sum(1, keepdims=True) * z


def test_the_text_classifies_the_latent_space_and_the_code_the_encoder():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(7, 10), dim=1)
    for classify, width in (("projection", 4), ("encoder", 6)):
        head = ContrastiveHead(10, 3, hidden=8, latent=6, projection=4, classify=classify).eval()
        z, logits = head(x)
        assert head.classifier.in_features == width and logits.shape == (7, 3)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(7))
        logits.sum().backward()
        reached = head.projection.weight.grad is not None
        assert reached == (classify == "projection")
    with pytest.raises(ValueError, match="latent"):
        ContrastiveHead(10, 3, classify="latent")


@pytest.mark.parametrize("labels", [[2], [1, 1, 1], [0, 1, 2, 3], [3, 3, 0]])
def test_odd_batches_have_finite_losses_and_gradients(labels):
    torch.manual_seed(0)
    head = ContrastiveHead(6, 5, hidden=8, latent=6, projection=4)
    x = torch.nn.functional.normalize(torch.randn(len(labels), 6), dim=1)
    terms = ContrastiveHeadLoss(5)(*head(x), torch.tensor(labels))
    terms[0].backward()
    assert all(torch.isfinite(t) for t in terms)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    alone = len(set(labels)) == len(labels)
    assert (terms[1].item() == 0) == alone  # no anchor has another row of its class


def test_a_row_without_an_embedding_touches_no_other():
    torch.manual_seed(0)
    head = ContrastiveHead(6, 3, hidden=8, latent=6, projection=4).eval()
    x = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    expected = head(x)[1]
    x[2] = float("nan")
    found = head(x)[1]
    assert found[2].isnan().all()
    torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]], rtol=0, atol=0)


def test_loss_settings_that_cannot_be_are_refused():
    for wrong in ({"supcon_weight": 1.1}, {"temperature": 0}, {"gamma": -1}):
        with pytest.raises(ValueError):
            ContrastiveHeadLoss(3, **wrong)

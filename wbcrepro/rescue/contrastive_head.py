"""The contrastive head of `rescue` (Section 2.3, second branch): class probabilities P_med from image embeddings.

    h      = encoder(e)             e (N, D) image embeddings of unit length; h (N, latent)
    z      = normalise(A h + a)     (N, projection), the "lower-dimensional normalized latent space"
    logits = B z + b   (the text, classify="projection")     or     B h + b   (the released code, classify="encoder")
    loss   = w SupCon(z, y; tau) + (1 - w) focal(logits, y; gamma)

    encoder = Linear(D, hidden) - LayerNorm - ReLU - Dropout - Linear(hidden, latent) - LayerNorm - ReLU - Dropout

The text gives neither sizes nor loss; from the released code are hidden 1024, latent 512, projection 256, dropout 0.05,
w = 0.3, tau = 0.07, gamma = 2 and a focal loss without class weights. With z of unit length and no temperature the
text's classifier starts from nearly equal probabilities and needs many steps to leave them.

Differs from the released code in: nothing is added inside the logarithm of SupCon (the release: 1e-6 to a sum of
exponentials; 1e-7 of the loss on the golden batch, more only for an anchor that is far from every other row).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.contrastive import supcon_loss
from wbcrepro.longtail.losses.focal import FocalLoss

CLASSIFY = ("encoder", "projection")


class ContrastiveHead(nn.Module):
    """Maps embeddings (N, dim) to (z (N, projection) of unit length, logits (N, classes)); see the module's docstring.

    Every row is treated alone: a row of NaN gives NaN and touches no other. Raises ValueError for another ``classify``.
    """

    def __init__(self, dim: int, classes: int, *, hidden: int = 1024, latent: int = 512, projection: int = 256,
                 dropout: float = 0.05, classify: str = "encoder"):
        super().__init__()
        if classify not in CLASSIFY:
            raise ValueError(f"classify must be one of {CLASSIFY}, got {classify!r}")
        self.classify = classify
        self.encoder = nn.Sequential(
            nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, latent), nn.LayerNorm(latent), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.projection = nn.Linear(latent, projection)
        self.classifier = nn.Linear(latent if classify == "encoder" else projection, classes)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(embeddings)
        z = F.normalize(self.projection(h), dim=1)
        return z, self.classifier(h if self.classify == "encoder" else z)


class ContrastiveHeadLoss(nn.Module):
    """(total, SupCon, focal), three scalars, of what `ContrastiveHead` gives and integer labels (N,).

    Both are means over all rows; one without another of its class counts as zero in SupCon. Finite for one row, one
    class in the batch, and classes that are absent.
    """

    def __init__(self, classes: int, *, supcon_weight: float = 0.3, temperature: float = 0.07, gamma: float = 2.0):
        super().__init__()
        if not 0 <= supcon_weight <= 1 or temperature <= 0:
            raise ValueError(f"need 0 <= supcon_weight <= 1 and temperature > 0, got {supcon_weight}, {temperature}")
        self.supcon_weight, self.temperature = supcon_weight, temperature
        self.focal = FocalLoss(torch.ones(classes), gamma)

    def forward(self, z: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        contrast, focal = supcon_loss(z, labels, self.temperature), self.focal(logits, labels)
        return self.supcon_weight * contrast + (1 - self.supcon_weight) * focal, contrast, focal

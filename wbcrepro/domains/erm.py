"""Empirical risk minimisation (Vapnik 1998): train on all source domains together and hope.

    min_theta  mean_i CE(f(x_i), y_i)

over the images x_i (N,3,S,S) of all sources with labels y_i (N,) and logits f(x_i) (N,C). The domains matter only in
that each gives the same number of images to a step. The first row of every table of `boda` and `sada`, M1 of the
latter's ablation. Does not differ from the released code (`ERM` in DomainBed and its forks).
"""

from torch import Tensor
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, join


class ERM(Algorithm):
    """Cross-entropy over the joined minibatches."""

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``: mean cross-entropy over all images."""
        x, y, _ = join(minibatches)
        return {"loss": F.cross_entropy(self.predict(x), y)}

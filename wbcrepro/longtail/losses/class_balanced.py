"""Class-balanced cross-entropy (Cui et al., CVPR 2019, Eq. 12; Eq. 3 of the paper `decoupled`)."""

from torch import Tensor

from wbcrepro.longtail.losses.hybrid import HybridLoss


class ClassBalancedLoss(HybridLoss):
    """mean_i -alpha_y log p_y: the lambda = 0 end of the hybrid loss.

    A *plain* mean over the batch, as in the released code of `decoupled`; torch's weighted mean would divide by the
    summed alpha of the batch, and so undo most of the weighting in a class-balanced batch.
    """

    def __init__(self, alpha: Tensor):
        super().__init__(alpha, gamma=0.0, lam=0.0)

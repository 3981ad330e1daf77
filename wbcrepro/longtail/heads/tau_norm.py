"""tau-normalisation (Kang et al., ICLR 2020, Eq. 3): divide each class's weight vector by its norm to the power tau.

Head classes grow long weight vectors under instance-balanced training; tau = 1 makes all equally long, tau = 0 changes
nothing. As in the reference code the bias is dropped and tau is the best of 21 steps in [0, 2] on validation.
"""

import numpy as np
import torch
from torch import nn

from wbcrepro.errors import UsageError
from wbcrepro.longtail.heads.crt import predict_logits
from wbcrepro.metrics import scores

TAUS = tuple(np.linspace(0, 2, 21).round(10).tolist())


def tau_normalise(linear: nn.Linear, tau: float) -> nn.Linear:
    """A new bias-free linear head with rows w_c / |w_c|^tau (a zero row stays zero); weight (C, D)."""
    if not isinstance(linear, nn.Linear):
        raise UsageError(f"tau-normalisation needs a linear head, got {type(linear).__name__}")
    weight = linear.weight.detach()
    head = nn.Linear(linear.in_features, linear.out_features, bias=False, device=weight.device, dtype=weight.dtype)
    norm = weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    with torch.no_grad():
        head.weight.copy_(weight / norm**tau)
    return head.eval()


def fit_tau_norm(linear: nn.Linear, val_features, val_labels, *, taus=TAUS, log=None) -> nn.Linear:
    """The head of the tau with the best validation macro-F1 (the smallest of equals); it carries ``head.tau``.

    val_features (M, D), val_labels (M,). ``log`` receives {"tau", "val_macro_f1"} for every step.
    """
    val_features = torch.as_tensor(val_features).to(linear.weight.device)
    best, chosen = -1.0, None
    for tau in taus:
        head = tau_normalise(linear, tau)
        pred = predict_logits(head, val_features).argmax(-1).cpu().numpy()
        score = scores(val_labels, pred, linear.out_features)["macro_f1"]
        if log is not None:
            log({"tau": tau, "val_macro_f1": score})
        if score > best:
            best, chosen = score, head
            chosen.tau = tau
    return chosen

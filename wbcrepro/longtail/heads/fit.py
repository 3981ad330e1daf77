"""One entry for all ways to get a classifier from a trained network's features."""

from collections.abc import Mapping

from torch import Tensor, nn

from wbcrepro.errors import UsageError
from wbcrepro.longtail.heads.crt import CRTConfig, Log, fit_crt
from wbcrepro.longtail.heads.logit_adjustment import logit_adjust
from wbcrepro.longtail.heads.lws import fit_lws
from wbcrepro.longtail.heads.ncm import fit_ncm
from wbcrepro.longtail.heads.tau_norm import fit_tau_norm

KINDS = ("as_trained", "crt", "lws", "tau_norm", "ncm", "logit_adjustment")
_LOSS_OPTIONS = ("beta", "gamma", "lam", "variant", "normalise")


def crt_config(classifier: str = "linear", select: str = "best", optimisation: Mapping | None = None) -> CRTConfig:
    """The configuration of a cRT cell; ``optimisation`` mixes fields of CRTConfig with those of its loss."""
    fields = dict(optimisation or {})
    loss_options = {name: fields.pop(name) for name in _LOSS_OPTIONS if name in fields}
    try:
        return CRTConfig(head=classifier, select=select, loss_options=loss_options, **fields)
    except TypeError as error:
        raise UsageError(f"stage 2 was given an option that it does not have: {error}") from error


def fit_head(kind: str, *, trained: nn.Module, features: Tensor, plain: Tensor, labels: Tensor, val_features: Tensor,
             val_labels: Tensor, classes: int, options: Mapping, seed: int, device="cpu",
             log: Log | None = None) -> tuple[nn.Module, dict]:
    """(head in eval mode, what was chosen on validation).

    ``trained`` is stage 1's own head; ``features`` (N, P, D) the augmented passes and ``plain`` (N, D) the untouched
    view of the training fold, ``labels`` (N,); val_features (M, D), val_labels (M,). ``options`` are for "crt" only,
    see `crt_config`; "lws" trains by `lws.LWS_CONFIG`. "ncm" takes its means from ``plain``, as its reference does.
    """
    rows: list[dict] = []

    def record(row: dict) -> None:
        rows.append(row)
        if log is not None:
            log(row)

    trained = trained.to(device)
    common = {"classes": classes, "seed": seed, "device": device, "log": record}
    if kind == "as_trained":
        return trained.eval(), {}
    if kind == "crt":
        head = fit_crt(features, labels, val_features, val_labels, crt_config(**options), **common)
    elif kind == "lws":
        head = fit_lws(trained, features, labels, val_features, val_labels, **common)
    elif kind == "tau_norm":
        head = fit_tau_norm(trained, val_features, val_labels, log=record)
        return head, {"tau": head.tau}
    elif kind == "ncm":
        return fit_ncm(plain, labels, classes=classes, device=device), {}
    elif kind == "logit_adjustment":
        return logit_adjust(trained, labels.bincount(minlength=classes)), {"tau": 1.0}
    else:
        raise UsageError(f"unknown head {kind!r}; known: {', '.join(KINDS)}")
    return head, {"best_epoch": rows[-1]["best_epoch"], "epochs_run": len(rows)}

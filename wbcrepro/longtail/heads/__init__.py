"""Classifier heads and the ways to (re)fit them on cached features: one algorithm a file."""

from wbcrepro.longtail.heads.classifiers import HEADS, CosineHead, make_head
from wbcrepro.longtail.heads.crt import CRTConfig, fit_crt, predict_logits, retrain
from wbcrepro.longtail.heads.fit import fit_head
from wbcrepro.longtail.heads.logit_adjustment import AdjustedHead, logit_adjust
from wbcrepro.longtail.heads.lws import ScaledHead, fit_lws
from wbcrepro.longtail.heads.ncm import NearestMean, fit_ncm
from wbcrepro.longtail.heads.tau_norm import TAUS, fit_tau_norm, tau_normalise

__all__ = ["HEADS", "TAUS", "AdjustedHead", "CRTConfig", "CosineHead", "NearestMean", "ScaledHead", "fit_crt",
           "fit_head", "fit_lws", "fit_ncm", "fit_tau_norm", "logit_adjust", "make_head", "predict_logits", "retrain",
           "tau_normalise"]

"""What tells cytoplasm from red cells in one image: a linear discriminant between near and far.

Pixels between the nucleus and the provisional outline are cytoplasm, coloured pixels well outside are mostly red
cells. Fisher's direction between the two (pooled covariance) gives a log-likelihood ratio for every pixel. It is used
only where the two samples are large enough, clearly apart, and the far one is no fainter than half of the near one:
neutrophils of some stains have the colour of red cells, and there only the shape can help.
"""

import cv2
import numpy as np

_APART = 2.0  # distance of the means in standard deviations
_MIXED = 0.25  # share of the near sample on the far one's side, from which the two are not apart
_FAINT = 0.55  # of the far sample's density relative to the near one's
_NEAR, _FAR = 40, 100  # pixels, at least
_LIMIT = 4.0  # of the log-likelihood ratio
_RIDGE = 4e-4  # squared optical density: noise that keeps the covariance regular


def evidence(density: np.ndarray, near: np.ndarray, far: np.ndarray) -> np.ndarray | None:
    """Evidence float32 (H, W) from -1 (red cell) to 1 (cytoplasm); None where colour does not tell the two apart.

    ``density``: optical density float32 (H, W, 3); ``near`` (n, 3) and ``far`` (m, 3) samples of it.
    """
    if len(near) < _NEAR or len(far) < _FAR:
        return None
    if np.median(np.linalg.norm(far, axis=1)) < _FAINT * np.median(np.linalg.norm(near, axis=1)):
        return None
    mean_near, mean_far = np.median(near, axis=0), np.median(far, axis=0)
    spread = (np.cov((near - mean_near).T) + np.cov((far - mean_far).T)) / 2 + np.eye(3) * _RIDGE
    direction = np.linalg.solve(spread, mean_near - mean_far).astype(np.float32)
    middle = (mean_near + mean_far) / 2
    if (mean_near - mean_far) @ direction < _APART**2 or ((near - middle) @ direction < 0).mean() > _MIXED:
        return None
    ratio = np.clip((density - middle) @ direction, -_LIMIT, _LIMIT).astype(np.float32)
    return cv2.GaussianBlur(ratio, (0, 0), 1.0) / _LIMIT

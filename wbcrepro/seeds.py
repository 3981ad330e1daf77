"""Seeds derived by hashing named parts, so that no two random streams share one by accident."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) from the string forms of ``parts``; the same parts give the same seed on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

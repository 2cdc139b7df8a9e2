"""Which joints of a clip are missing: the one rule of every stream, mapping, caption and drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.layouts import Layout


def missing_joints(clip: npt.NDArray[Any], layout: Layout) -> npt.NDArray[np.bool_]:
    """Mark the joints that are missing from the bodies of a clip.

    A joint that was not seen is zero in all coordinates; readers turn NaN and infinite ones into zero too. An absent body
    lacks no joint. In a centred clip zero is also the place of the origin: the anchor counts as seen until that of the
    first body has moved, and so does a centre that is zero throughout, on which every frame was centred.

    Shape: (T, M, V, C) -> (T, M, V)
    """
    seen = np.asarray(clip.any(axis=3), np.bool_)
    there = np.asarray(seen.any(axis=2), np.bool_)
    seen[:, :, layout.anchor] |= (seen[:, 0, layout.anchor].cumsum() == 0)[:, None]
    seen[:, :, layout.centre] |= not seen[:, 0, layout.centre].any()
    return ~seen & there[..., None]

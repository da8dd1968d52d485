"""M-RoPE for text: rotary positions on several axes, of which a text uses one.

Models that see images give a token a place in time, height and width, and turn some pairs of each
head by each. A text's tokens have the same place on these three, so that the usual rope has the
same bits. On a further axis they are all at 0: its pairs are not turned. Dividing their frequencies
by infinity leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def text_factors(
    axes: Sequence[int], n_pairs: int, *, interleaved: bool
) -> npt.NDArray[np.float32]:
    """F32 [n_pairs]: what divides the frequency of each pair, 1 or infinity.

    `axes`: how many pairs time, height, width and the further axis turn. `interleaved`: they take
    turns, a pair each, until theirs are used up; otherwise each has its pairs together.
    """
    n_time, n_height, n_width, _ = axes
    place = np.arange(n_pairs) % sum(axes)
    turned = place < n_time + n_height + n_width
    if interleaved:
        turned = place < 3 * np.array((n_time, n_height, n_width))[place % 3]
    return np.where(turned, np.float32(1), np.float32(np.inf))

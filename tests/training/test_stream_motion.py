"""Motion of a stream: what is known of all of it is what a search of a sample's region finds."""

import numpy as np

from vsdiqp.training.motion import OFTEN, Motion


def clip(bits: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    picture = rng.integers(16, 236, (160, 192)).astype(np.float32)
    for axis in (0, 1):
        picture = (picture + np.roll(picture, 1, axis) + np.roll(picture, 2, axis)) / 3
    frames = [picture[n : n + 128, 2 * n : 2 * n + 128] for n in range(7)]
    kind = np.uint8 if bits == 8 else np.uint16
    return (np.stack(frames) * (1 << (bits - 8))).astype(kind)


def test_known_motion_is_what_a_search_finds() -> None:
    for bits in (8, 10):
        luma, motion, region = clip(bits), Motion(), (64, 0, 128, 64)
        pairs = [(3, 4), (3, 1), (0, 2), (6, 5)]
        looks = [motion.vectors(luma, bits, 2, pairs, region) for _ in range(OFTEN + 1)]
        blocks = np.s_[0:8, 8:16]
        for pair in pairs:
            assert looks[0][pair][blocks].any()
            assert all(np.array_equal(look[pair][blocks], looks[0][pair][blocks]) for look in looks)
        assert looks[-1][pairs[0]][8:, :8].any(), "all of the frame is known by now"


def test_pairs_beyond_what_is_known_are_searched() -> None:
    luma, motion = clip(8), Motion()
    motion.learn(luma, 8, 1)
    far = motion.vectors(luma, 8, 3, [(0, 3)], (0, 0, 64, 64))
    assert far[0, 3][:8, :8].any()

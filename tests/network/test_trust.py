"""How much of a prediction is applied at a QP."""

import dataclasses

import pytest

from tests.network.small import SMALL_LITE
from vsdiqp.network import DiQP, DiQPConfig


def test_trust_follows_its_points() -> None:
    config = dataclasses.replace(SMALL_LITE, trust={"hevc": ((12.0, 0.2), (22.0, 1.0))})
    network = DiQP(config)
    assert network.confidence(12, "hevc") == pytest.approx(0.2)
    assert network.confidence(17, "hevc") == pytest.approx(0.6)
    assert network.confidence(22, "hevc") == network.confidence(51, "hevc") == 1.0
    assert network.confidence(5, "hevc") == 0.0
    assert network.confidence(40, "av1") == 1.0, "codecs without points are trusted in their whole range"
    assert DiQPConfig.from_dict(config.to_dict()) == config

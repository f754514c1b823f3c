"""How much of a prediction is applied at a QP."""

import dataclasses

import pytest

from tests.network.small import SMALL_LITE
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig


def test_chroma_is_trusted_by_points_of_its_own() -> None:
    config = dataclasses.replace(SMALL_LITE, chroma_trust={"hevc": ((22.0, 0.4), (32.0, 0.8))})
    network = DiQP(config)
    assert network.chroma_confidence(27, "hevc") == pytest.approx(0.6)
    assert network.chroma_confidence(5, "hevc") == pytest.approx(0.4)
    assert network.chroma_confidence(27, "av1") == network.confidence(27, "hevc") == 1.0
    assert DiQPConfig.from_dict(config.to_dict()) == config
    assert "chroma_trust" not in SMALL_LITE.to_dict(), "older versions read what has none"
    with pytest.raises(DiqpError, match="chroma_trust is for networks with colour 'ycbcr'"):
        DiQPConfig(chroma_trust={"hevc": ((22.0, 0.4),)})


def test_trust_follows_its_points() -> None:
    config = dataclasses.replace(SMALL_LITE, trust={"hevc": ((12.0, 0.2), (22.0, 1.0))})
    network = DiQP(config)
    assert network.confidence(12, "hevc") == pytest.approx(0.2)
    assert network.confidence(17, "hevc") == pytest.approx(0.6)
    assert network.confidence(22, "hevc") == network.confidence(51, "hevc") == 1.0
    assert network.confidence(5, "hevc") == 0.0
    assert network.confidence(40, "av1") == 1.0, "codecs without points are trusted in their whole range"
    assert DiQPConfig.from_dict(config.to_dict()) == config

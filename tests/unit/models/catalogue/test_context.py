from dataclasses import dataclass

import numpy as np

from models.catalogue.context import ContextVocabulary


@dataclass(frozen=True)
class Context:
    region: str | None = None
    device: str | None = None
    signed_in: bool | None = None
    age: float | None = None


VOCABULARY = ContextVocabulary({"region": ("de", "fr"), "device": ("tv",)}, ("signed_in", "age"))


def test_values_have_their_codes_and_what_is_not_known_has_none():
    codes, traits = VOCABULARY.read([Context("fr", "tv", True, 0.25), Context("xx", None, False), None])
    assert codes.tolist() == [[2, 1], [0, 0], [0, 0]]
    np.testing.assert_array_equal(traits, np.array([[1, 0.25], [0, np.nan], [np.nan, np.nan]], np.float32))
    assert VOCABULARY.sizes == (3, 2)


def test_a_model_without_context_reads_none():
    codes, traits = ContextVocabulary().read([Context("fr"), None])
    assert codes.shape == traits.shape == (2, 0)

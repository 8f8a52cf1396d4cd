"""Every type of transformers is served, or it is said why not."""

from __future__ import annotations

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightkv_gnn import seams
from lightkv_gnn.adapters import families
from lightkv_gnn.adapters.unserved import KINDS, UNSERVED

TYPES = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def test_every_type_is_served_or_it_is_said_why_not() -> None:
    named = set(UNSERVED) | set(families())
    assert not TYPES - named, "transformers has types that neither an adapter nor unserved.py names"


def test_no_type_is_both_served_and_not() -> None:
    assert not set(UNSERVED) & set(families())


@pytest.mark.skipif(
    not transformers.__version__.startswith(seams.NEWEST), reason="others have fewer types, or more"
)
def test_what_is_unserved_is_a_type() -> None:
    assert not set(UNSERVED) - TYPES


def test_every_sentence_can_stand_after_a_colon() -> None:
    for name, one in UNSERVED.items():
        assert one.kind in KINDS, name
    for sentence in (*KINDS.values(), *(one.why for one in UNSERVED.values())):
        assert sentence[0].islower() or sentence.startswith("Q-")
        assert not sentence.endswith(".")

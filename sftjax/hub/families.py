"""The weight maps of the families this package has modules for, one table each.

A row whose path the model does not have belongs to another head of the family (the next-sentence
head of BERT's pretraining, a question-answering head): known, not loaded, reported.
"""

from sftjax.hub.encoder_names import ENCODERS
from sftjax.hub.names import WeightMap
from sftjax.hub.seq2seq_names import SEQ2SEQ

WEIGHT_MAPS: dict[str, WeightMap] = {**ENCODERS, **SEQ2SEQ}
"""`model_type` of the config -> its table."""

"""The weight maps of encoders of text.

A row whose path the model does not have belongs to another head of the family (the next-sentence
head of BERT's pretraining, a question-answering head): known, not loaded, reported.
"""

from sftjax.hub.names import Row, WeightMap, dense, embedding, norm, parameter


def _bert_trunk(trunk: str) -> tuple[Row, ...]:
    block = f"{trunk}.encoder.layer.{{}}"
    return (
        *embedding(f"{trunk}.embeddings.word_embeddings"),
        *embedding(f"{trunk}.embeddings.position_embeddings"),
        *embedding(f"{trunk}.embeddings.token_type_embeddings"),
        *norm(f"{trunk}.embeddings.LayerNorm"),
        *dense(f"{block}.attention.self.query"),
        *dense(f"{block}.attention.self.key"),
        *dense(f"{block}.attention.self.value"),
        *dense(f"{block}.attention.output.dense"),
        *norm(f"{block}.attention.output.LayerNorm"),
        *dense(f"{block}.intermediate.dense"),
        *dense(f"{block}.output.dense"),
        *norm(f"{block}.output.LayerNorm"),
        *dense(f"{trunk}.pooler.dense"),
    )


def _distilbert_trunk() -> tuple[Row, ...]:
    block = "distilbert.transformer.layer.{}"
    return (
        *embedding("distilbert.embeddings.word_embeddings"),
        *embedding("distilbert.embeddings.position_embeddings"),
        *norm("distilbert.embeddings.LayerNorm"),
        *dense(f"{block}.attention.q_lin"),
        *dense(f"{block}.attention.k_lin"),
        *dense(f"{block}.attention.v_lin"),
        *dense(f"{block}.attention.out_lin"),
        *norm(f"{block}.sa_layer_norm"),
        *dense(f"{block}.ffn.lin1"),
        *dense(f"{block}.ffn.lin2"),
        *norm(f"{block}.output_layer_norm"),
    )


BERT = WeightMap(
    stem="Bert",
    trunk="bert",
    rows=(
        *_bert_trunk("bert"),
        *dense("classifier"),
        *dense("cls.predictions.transform.dense"),
        *norm("cls.predictions.transform.LayerNorm"),
        *parameter("cls.predictions.bias"),
        *dense("cls.predictions.decoder")[:1],
        *dense("cls.seq_relationship"),
        *dense("qa_outputs"),
    ),
    ties=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    buffers=("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"),
    output={"sequence": "classifier", "token": "classifier"},
)

ROBERTA = WeightMap(
    stem="Roberta",
    trunk="roberta",
    rows=(
        *_bert_trunk("roberta"),
        *dense("classifier.dense"),
        *dense("classifier.out_proj"),
        *dense("classifier"),
        *dense("lm_head.dense"),
        *norm("lm_head.layer_norm"),
        *parameter("lm_head.bias"),
        *dense("lm_head.decoder")[:1],
        *dense("qa_outputs"),
    ),
    ties=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    buffers=("roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids"),
    output={"sequence": "classifier/out_proj", "token": "classifier"},
)

DISTILBERT = WeightMap(
    stem="DistilBert",
    trunk="distilbert",
    rows=(
        *_distilbert_trunk(),
        *dense("pre_classifier"),
        *dense("classifier"),
        *dense("vocab_transform"),
        *norm("vocab_layer_norm"),
        *dense("vocab_projector"),
        *dense("qa_outputs"),
    ),
    ties=(("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
    buffers=("distilbert.embeddings.position_ids",),
    output={"sequence": "classifier", "token": "classifier"},
)

ENCODERS: dict[str, WeightMap] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA._replace(stem="XLMRoberta"),
    "distilbert": DISTILBERT,
}
"""`model_type` of the config -> its table."""

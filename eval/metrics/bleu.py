"""How many of an answer's word sequences stand in a reference."""

import itertools
from collections.abc import Sequence

from eval.metric_module import wrapped


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Corpus BLEU in 0-1 (sacrebleu's own figure divided by 100; tokenizer 13a, exponential smoothing).

    Source: Papineni et al. 2002; Post 2018 for what is fixed by sacrebleu.
    """
    import sacrebleu

    accepted = [[text] if isinstance(text, str) else list(text) for text in references]
    # sacrebleu takes the first reference of every text, then the second ...; missing ones are None.
    columns = [list(column) for column in itertools.zip_longest(*accepted)]
    # 100 may come out as 100.00000000000004.
    return min(1.0, float(sacrebleu.corpus_bleu(list(predictions), columns).score) / 100)


Metric = wrapped(bleu, reads="texts")

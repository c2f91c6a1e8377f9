"""F1 of two bags of words, the question-answering score of LongBench (arXiv 2308.14508), for English and Chinese."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import lru_cache

from kvbench.metrics.tokens_zh import tokens_zh

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_ASCII = str.maketrans("", "", string.punctuation)
# LongBench's list, which has no 《
_CJK = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､"
    "、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_ASCII_AND_CJK = str.maketrans("", "", string.punctuation + _CJK)


def qa_f1(prediction: str, answer: str) -> float:
    """Return the bag F1 of lower-cased English words without ASCII punctuation and articles."""
    return bag_f1(_words_en(prediction), _words_en(answer))


def qa_f1_zh(prediction: str, answer: str) -> float:
    """Return the bag F1 of jieba's words, lower-cased, without ASCII and Chinese punctuation."""
    return bag_f1(_words_zh(prediction), _words_zh(answer))


def bag_f1(prediction: Counter[str], answer: Counter[str]) -> float:
    """Return the F1 of two bags: common words count as often as both bags hold them; 0.0 without any."""
    common = sum(min(count, answer[word]) for word, count in prediction.items() if word in answer)
    if not common:
        return 0.0
    precision, recall = common / prediction.total(), common / answer.total()
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=32)  # a prediction is scored against several answers
def _words_en(text: str) -> Counter[str]:
    # Punctuation first: "U.S.A" becomes one word, and "a-b" is not an article.
    return Counter(_ARTICLE.sub(" ", text.lower().translate(_ASCII)).split())


@lru_cache(maxsize=32)
def _words_zh(text: str) -> Counter[str]:
    # Segmented first, then cleaned: punctuation helps jieba to find words.
    words = ("".join(token.lower().translate(_ASCII_AND_CJK).split()) for token in tokens_zh(text))
    return Counter(word for word in words if word)

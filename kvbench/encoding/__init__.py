"""Text to token ids and back: control tokens come from templates only, templates are rendered with care."""

from kvbench.encoding.decoding import cleaned_up, decoder
from kvbench.encoding.encoder import MARK, Encoder, encoder
from kvbench.encoding.template import PLACEHOLDER, around_user, frame, has_template, rendered

__all__ = [
    "MARK",
    "PLACEHOLDER",
    "Encoder",
    "around_user",
    "cleaned_up",
    "decoder",
    "encoder",
    "frame",
    "has_template",
    "rendered",
]

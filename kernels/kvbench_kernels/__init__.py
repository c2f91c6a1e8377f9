"""Operations on a ragged KV cache: each (row, KV head) is a segment of its own length in one flat buffer."""

"""Parity with papers: published scores next to our own, with every difference between the two settings named."""

"""Count tokens as a model does, with its own ``tokenizer.json``.

Floor: edge, though it does no input or output of its own: it runs the ``tokenizers`` library.
"""

from __future__ import annotations

import os

# The library would start a thread for each core to encode one text, and warn when a process forks afterwards.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer  # reads the variable above


class BrokenTokenizer(ValueError):
    """The file is no tokenizer; the text is a sentence for the operator."""


class TextTokenizer:
    """A model's tokenizer. Threads may share it; it lets other threads run while it works.

    Args:
        source: the JSON of ``tokenizer.json``.

    Raises:
        BrokenTokenizer: with a sentence for the operator.
    """

    def __init__(self, source: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # the library raises nothing more precise
            raise BrokenTokenizer(
                "tokenizer.json can't be read by the tokenizers library: check that the file is whole, and not newer "
                "than the library."
            ) from error
        # Training leaves these in the file; here each would make a wrong count.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {number: token.content for number, token in self._tokenizer.get_added_tokens_decoder().items()}
        self.beginning = self._beginning()
        """What an engine that encodes a plain text puts before it. A prompt that has it already, as those of most chat
        templates do, would begin with it twice: such a prompt is sent without."""

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        """How many tokens a text is.

        Args:
            add_special_tokens: whether the model's own beginning (and end) is added, as engines do for a plain prompt.
                A rendered chat prompt has them already.
        """
        # The batch call without offsets is the fastest; it takes no lone surrogates.
        text = text.encode("utf-8", "replace").decode()
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return len(encoded[0])

    def text_of(self, token: int) -> str | None:
        """The text of one token, special or not; None if there is no such token."""
        if token in self._added:
            return self._added[token]
        if self._tokenizer.id_to_token(token) is None:
            return None
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def _beginning(self) -> str:
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        added = next((at for at in range(len(whole)) if bare and whole[at : at + len(bare)] == bare), 0)
        return "".join(self.text_of(token) or "" for token in whole[:added])

"""The errors that this package raises. All derive from `EmbeddingError`."""


class EmbeddingError(Exception):
    """Base of every error raised by lightning-embed."""


class InputError(EmbeddingError, ValueError):
    """An argument, the data or the model cannot be used; the message names it and the remedy."""


class ReplayError(EmbeddingError, RuntimeError):
    """A recorded tape could not be replayed on the model as it is now.

    Attributes:
        module: qualified name of the module whose call failed; None where it was a function.
    """

    def __init__(self, message: str = "", *, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


class CheckpointError(EmbeddingError, RuntimeError):
    """A state dict and a model do not belong together, or its architecture key is damaged."""

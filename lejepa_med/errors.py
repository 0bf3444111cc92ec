"""Errors of the method; all say what to do. The command line and the service print them without a traceback."""

from data_adapters.errors import BadFileError, MissingExtraError, UserError

__all__ = ["BadFileError", "ConfigError", "EncoderError", "MissingExtraError", "TrainingError", "UserError"]


class ConfigError(UserError):
    """Settings that cannot work together."""


class EncoderError(UserError):
    """An encoder folder that cannot be used."""


class TrainingError(UserError):
    """A run that had to stop."""

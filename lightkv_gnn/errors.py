"""Errors of the library; each is also the built-in exception that fits it."""


class UnsupportedModelError(TypeError):
    """No adapter is registered for the model."""


class ScheduleError(ValueError):
    """A schedule that does not fit the model: layers or windows it cannot have."""


class ImageTokensError(ValueError):
    """The prompt's image placeholders do not make up whole images."""


class UnsupportedInputError(ValueError):
    """A call to the model that compression cannot serve correctly."""

"""Everything idgen raises on purpose.

IdgenError
    ConfigError            a setting is unknown or holds an unusable value (also a ValueError)
    UnknownNameError       a registry has no such entry (also a KeyError)
    ImageError             a file is not a picture that can be used (also a ValueError)
    FaceError              the faces in a photo do not allow to go on (also a ValueError)
        FaceNotFoundError      no usable face was seen
        AmbiguousFaceError     several faces, and nobody said which
    IdentityError          an identity, or the file of one, cannot be used (also a ValueError)
    EncoderMismatchError   features of two different encoders meet (also a ValueError)
    RefusedPersonError     somebody is meant who refused to be shown (also a PermissionError)
    WeightsError           a file of weights does not fit, or is not safe to read (also a ValueError)
    ModelNotFoundError     a model is not on this disk (also a FileNotFoundError)
    MeasureError           numbers do not allow the measure that was asked for (also a ValueError)
    RunFolderError         an output folder holds something else (also a FileExistsError)
    TrainingError          a training cannot go on (also an ArithmeticError)
    StorageError           a file could not be written whole (also an OSError)
    WorkerError            a process that shared the work died (also a RuntimeError)
"""


class IdgenError(Exception):
    """Base class; catch this to catch everything idgen raises on purpose."""


class ConfigError(IdgenError, ValueError):
    """A configuration names an unknown setting or holds an unusable value."""


class UnknownNameError(IdgenError, KeyError):
    """A registry was asked for a name it does not hold."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class ImageError(IdgenError, ValueError):
    """A file is missing, is not a picture, is damaged, or is too large to open safely."""


class FaceError(IdgenError, ValueError):
    """The faces in a photo do not allow to go on."""


class FaceNotFoundError(FaceError):
    """No usable face was seen in a photo."""


class AmbiguousFaceError(FaceError):
    """A photo shows several faces and nothing says which one is meant."""


class IdentityError(IdgenError, ValueError):
    """An identity holds an unusable feature, or a file is no identity that can be read."""


class EncoderMismatchError(IdgenError, ValueError):
    """Features of two different encoders were compared or mixed."""


class RefusedPersonError(IdgenError, PermissionError):
    """Somebody is meant who is on the list of people who refused."""


class WeightsError(IdgenError, ValueError):
    """A file of weights does not fit the model, or cannot be read safely."""


class ModelNotFoundError(IdgenError, FileNotFoundError):
    """A model is not on this disk."""


class MeasureError(IdgenError, ValueError):
    """What was measured does not allow the number that was asked for: too little of it, or not numbers."""


class RunFolderError(IdgenError, FileExistsError):
    """An output folder already holds something else."""


class TrainingError(IdgenError, ArithmeticError):
    """A training cannot go on: its loss is no number any more."""


class StorageError(IdgenError, OSError):
    """A file could not be written whole."""


class WorkerError(IdgenError, RuntimeError):
    """A process that shared the work died; what is finished stays."""

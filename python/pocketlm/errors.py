"""What can go wrong, as a tree of typed exceptions.

Every failure that a file, a client or a caller can cause raises one of these. Each names the thing at fault
in its message and carries a stable ``code`` for programs::

    PocketlmError
    ├── FileFormatError        a damaged or unsupported file            (also ValueError)
    ├── MissingFileError       a file or directory that is not there    (also FileNotFoundError)
    ├── StorageError           a read-only or full disk                 (also OSError)
    ├── ConfigError            a config.json that cannot be honoured    (also ValueError)
    ├── WeightError            a tensor missing, or of wrong shape, type or value  (also ValueError)
    ├── AdapterError           an adapter that does not fit its model   (also ValueError)
    ├── TokenizerError         a tokenizer missing or not of this model (also ValueError)
    ├── TemplateError          a chat template that fails               (also ValueError)
    ├── ParameterError         an argument out of its range             (also ValueError)
    ├── BudgetError            budgets that no choice of kinds can meet (also ValueError)
    ├── ContextLengthError     a prompt that does not fit               (also ValueError)
    ├── MemoryLimitError       more memory than allowed or available    (also MemoryError)
    ├── CancelledError         the caller cancelled
    ├── UnsupportedError       not supported on this machine or version
    └── InternalError          a defect of pocketlm itself
"""


class PocketlmError(Exception):
    """Base of every error that pocketlm raises on purpose."""

    code = "pocketlm_error"


class FileFormatError(PocketlmError, ValueError):
    """A file is damaged, truncated or of an unsupported form. The message names the file and, where known,
    the tensor."""

    code = "file_format"


class MissingFileError(PocketlmError, FileNotFoundError):
    """A file or directory that is needed does not exist."""

    code = "missing_file"


class StorageError(PocketlmError, OSError):
    """Writing failed: the disk is full, read-only, or not permitted."""

    code = "storage"


class ConfigError(PocketlmError, ValueError):
    """A configuration is malformed, of an unknown model type, or asks for numerics that are not supported."""

    code = "config"


class WeightError(PocketlmError, ValueError):
    """A tensor is missing, or its shape, dtype or values do not fit the model."""

    code = "weight"


class AdapterError(PocketlmError, ValueError):
    """An adapter is malformed or does not fit the model. The message names file and target."""

    code = "adapter"


class TokenizerError(PocketlmError, ValueError):
    """A tokenizer is missing, damaged, or does not match the model's embedding."""

    code = "tokenizer"


class TemplateError(PocketlmError, ValueError):
    """A chat template is missing or failed to render."""

    code = "template"


class ParameterError(PocketlmError, ValueError):
    """An argument is of the wrong type or out of its range. The message names the parameter."""

    code = "parameter"


class BudgetError(PocketlmError, ValueError):
    """No choice of kinds meets the budgets of a palettization. The message says the nearest that can be
    met."""

    code = "budget"


class ContextLengthError(PocketlmError, ValueError):
    """Prompt and requested tokens do not fit the model's context. Raised before any work starts."""

    code = "context_length"


class MemoryLimitError(PocketlmError, MemoryError):
    """The work would need more memory than the limit or the machine allows. Raised before allocating."""

    code = "memory_limit"


class CancelledError(PocketlmError):
    """The caller cancelled the request."""

    code = "cancelled"


class UnsupportedError(PocketlmError):
    """Something that this build or this machine cannot do."""

    code = "unsupported"


class InternalError(PocketlmError):
    """A defect of pocketlm itself; please report it."""

    code = "internal"

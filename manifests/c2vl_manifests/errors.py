"""The errors users meet: one flat family, each message giving value, expectation and remedy in one line."""


class C2VLError(Exception):
    """Anything a user can mend. The command line prints it as one red line and exits with code 1."""


class ConfigError(C2VLError):
    """A recipe, an override or a dataset description that does not hold together."""


class DataError(C2VLError):
    """A file that cannot be read as the format it claims to be (`file:line: reason` where there are lines)."""


class StageError(C2VLError):
    """A stage that cannot run: its predecessor is missing, unfinished, or of another configuration."""


class EngineError(C2VLError):
    """A model back-end that is not installed or whose checkpoint cannot be found or loaded."""


class CheckpointError(C2VLError):
    """A run folder or weight file that is absent, damaged, or of another model or dataset."""

"""Feature flags over a view: a provider for the OpenFeature SDK, with the rules that a view does not have."""

from datasync.errors import MissingExtraError

try:
    from datasync.openfeature.provider import DatasyncProvider
except ImportError as _error:
    if (_error.name or "").partition(".")[0] != "openfeature":
        raise
    raise MissingExtraError("openfeature", "openfeature-sdk") from _error

__all__ = ["DatasyncProvider"]
